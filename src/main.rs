//! Picks the program by subcommand or by the name it was called with.

fn main() {}
