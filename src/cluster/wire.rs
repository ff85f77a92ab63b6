//! The documents in the store, both directions. Strict in what we write, lenient in what we read (spec/dcs.md §1.3, §2).
