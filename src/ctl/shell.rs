//! `completions` and `man`: what shells and readers want to know of the command line, generated from it.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Arguments, Done, Failure, Session, error};

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell that is to complete.
    shell: Shell,
    /// The name under which the command line is called.
    #[arg(long, default_value = "patronictl")]
    name: String,
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// Page of this command; without it of the whole program.
    command: Option<String>,
}

impl Session<'_> {
    pub(super) fn completions(&mut self, arguments: Completions) -> Done {
        let mut script = Vec::new();
        clap_complete::generate(
            arguments.shell,
            &mut Arguments::command(),
            arguments.name,
            &mut script,
        );
        self.screen.text(&String::from_utf8_lossy(&script))
    }

    pub(super) fn man(&mut self, arguments: Man) -> Done {
        let mut program = Arguments::command();
        program.build();
        let described = match &arguments.command {
            None => program,
            Some(name) => match program.find_subcommand(name) {
                Some(command) => command.clone(),
                None => return error(format!("there is no command {name}")),
            },
        };
        let mut page = Vec::new();
        clap_mangen::Man::new(described)
            .render(&mut page)
            .map_err(|why| Failure::Error(format!("the page can not be made: {why}")))?;
        self.screen.text(&String::from_utf8_lossy(&page))
    }
}
