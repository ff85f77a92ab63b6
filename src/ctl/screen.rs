//! The one owner of stdout, stderr and stdin of the command line.

use std::io::{BufRead, Write};

use super::Failure;

/// Where a command prints and asks. Output errors end the command quietly: the reader has gone.
pub struct Screen {
    /// Standard output.
    pub out: Box<dyn Write + Send>,
    /// Standard error.
    pub err: Box<dyn Write + Send>,
    /// Standard input.
    pub input: Box<dyn BufRead + Send>,
    /// Standard output is a terminal.
    pub is_terminal: bool,
    /// It takes colours.
    pub colours: bool,
}

impl Screen {
    /// The process's own.
    #[must_use]
    pub fn process() -> Screen {
        Screen {
            out: Box::new(std::io::stdout()),
            err: Box::new(std::io::stderr()),
            input: Box::new(std::io::BufReader::new(std::io::stdin())),
            is_terminal: rustix::termios::isatty(std::io::stdout()),
            colours: false,
        }
    }

    /// Prints one line.
    pub fn line(&mut self, text: &str) -> Result<(), Failure> {
        self.text(&format!("{text}\n"))
    }

    /// Prints as is.
    pub fn text(&mut self, text: &str) -> Result<(), Failure> {
        self.out
            .write_all(text.as_bytes())
            .and_then(|()| self.out.flush())
            .map_err(|_| Failure::Aborted)
    }

    /// Prints one line on stderr.
    pub fn complain(&mut self, text: &str) {
        let _ = writeln!(self.err, "{text}");
    }

    /// Asks until there is an answer, or the default.
    pub fn ask(&mut self, question: &str, default: Option<&str>) -> Result<String, Failure> {
        loop {
            match default {
                Some(default) => self.text(&format!("{question} [{default}]: "))?,
                None => self.text(&format!("{question}: "))?,
            }
            let answer = self.read_line()?;
            match (answer.is_empty(), default) {
                (false, _) => return Ok(answer),
                (true, Some(default)) => return Ok(default.to_owned()),
                (true, None) => {}
            }
        }
    }

    /// Asks without showing what is typed, where input is a terminal.
    pub fn ask_hidden(&mut self, question: &str) -> Result<String, Failure> {
        use rustix::termios::{LocalModes, OptionalActions, isatty, tcgetattr, tcsetattr};
        let stdin = std::io::stdin();
        let shown = if isatty(&stdin) {
            tcgetattr(&stdin).ok()
        } else {
            None
        };
        if let Some(shown) = &shown {
            let mut hidden = shown.clone();
            hidden.local_modes.remove(LocalModes::ECHO);
            let _ = tcsetattr(&stdin, OptionalActions::Now, &hidden);
        }
        let answer = self.ask(question, None);
        if let Some(shown) = &shown {
            let _ = tcsetattr(&stdin, OptionalActions::Now, shown);
            self.line("")?;
        }
        answer
    }

    /// `[y/N]`.
    pub fn confirm(&mut self, question: &str) -> Result<bool, Failure> {
        loop {
            self.text(&format!("{question} [y/N]: "))?;
            match self.read_line()?.to_lowercase().as_str() {
                "y" | "yes" => return Ok(true),
                "" | "n" | "no" => return Ok(false),
                _ => self.line("Error: invalid input")?,
            }
        }
    }

    /// Everything up to the end of standard input.
    pub fn read_all(&mut self) -> Result<String, Failure> {
        let mut text = String::new();
        self.input
            .read_to_string(&mut text)
            .map_err(|error| Failure::Error(format!("can not read standard input: {error}")))?;
        Ok(text)
    }

    fn read_line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        match self.input.read_line(&mut line) {
            Ok(0) | Err(_) => Err(Failure::Aborted),
            Ok(_) => Ok(line.trim().to_owned()),
        }
    }
}
