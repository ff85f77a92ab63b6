//! Both command lines, asked the same.

use std::cell::RefCell;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use howdah::clock;
use howdah::types::Lsn;

use crate::cluster::PATIENCE;
use crate::members::{Kind, upstream};

/// What a command said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) status: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    #[track_caller]
    pub(crate) fn must_contain(&self, text: &str) {
        assert!(self.out.contains(text), "no {text:?} in {self:#?}");
    }

    /// What remains when times, positions and the widths that follow from them are left out.
    fn shape(&self) -> Said {
        Said {
            out: shape(&self.out),
            err: shape(&self.err),
            status: self.status,
        }
    }
}

fn shape(text: &str) -> String {
    let mut lines = Vec::new();
    for line in text.lines() {
        let words = line.split_whitespace().map(|word| {
            if word.contains('/') && word.parse::<Lsn>().is_ok() {
                "<lsn>".to_owned()
            } else if word.starts_with("20") && word[2..].contains('-') && word.contains(':') {
                "<time>".to_owned()
            } else if word.starts_with("20") && word.matches('-').count() == 2 {
                "<date>".to_owned()
            } else if word.matches(':').count() == 2
                && word.starts_with(|c: char| c.is_ascii_digit())
            {
                "<clock>".to_owned()
            } else if word.contains("--") && !word.starts_with("--") {
                "+-".to_owned()
            } else {
                word.to_owned()
            }
        });
        lines.push(words.collect::<Vec<_>>().join(" "));
    }
    lines.join("\n")
}

/// Both, with one member's configuration file.
pub(crate) struct Tools {
    config: PathBuf,
    /// Where they did not say the same.
    differences: RefCell<Vec<String>>,
}

impl Tools {
    pub(crate) fn new(config: &Path) -> Tools {
        Tools {
            config: config.to_owned(),
            differences: RefCell::default(),
        }
    }

    /// Runs one of them; `input` is what somebody would type or pipe.
    pub(crate) fn run(&self, whose: Kind, arguments: &[&str], input: &str) -> Said {
        let mut command = match whose {
            Kind::Patroni => Command::new(upstream("patronictl")),
            Kind::Howdah => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_howdah"));
                command.arg("ctl");
                command
            }
        };
        let mut child = command
            .arg("-c")
            .arg(&self.config)
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LANG", "C.UTF-8")
            .env("PGUSER", "postgres")
            .env("PGPASSWORD", "super")
            .current_dir(std::env::temp_dir())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may end without reading.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        Said {
            status: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Both say the same, to the letter, of a cluster that nothing happens to. What they say.
    #[track_caller]
    pub(crate) fn same(&self, arguments: &[&str]) -> Said {
        self.same_when(arguments, "", Clone::clone)
    }

    /// The same with times left out.
    #[track_caller]
    pub(crate) fn same_shape(&self, arguments: &[&str]) -> Said {
        self.same_when(arguments, "", Said::shape)
    }

    /// The same with something typed.
    #[track_caller]
    pub(crate) fn same_asked(&self, arguments: &[&str], input: &str) -> Said {
        self.same_when(arguments, input, Said::shape)
    }

    /// Members write into the store meanwhile: what differs must go on differing to be a fault.
    fn same_when(&self, arguments: &[&str], input: &str, look: impl Fn(&Said) -> Said) -> Said {
        let began = clock::now();
        loop {
            let theirs = self.run(Kind::Patroni, arguments, input);
            let ours = self.run(Kind::Howdah, arguments, input);
            if look(&theirs) == look(&ours) {
                return theirs;
            }
            if clock::now().since(began) > Duration::from_secs(5) {
                self.differ(arguments, &look(&theirs), &look(&ours));
                return theirs;
            }
        }
    }

    /// One after the other does the same thing, `restore` undoes it; they say the same but for times. What upstream's said.
    #[track_caller]
    pub(crate) fn alike(&self, arguments: &[&str], input: &str, restore: impl Fn(&Said)) -> Said {
        let said = [Kind::Patroni, Kind::Howdah].map(|whose| {
            let said = self.run(whose, arguments, input);
            restore(&said);
            said
        });
        if said[0].shape() != said[1].shape() {
            self.differ(arguments, &said[0].shape(), &said[1].shape());
        }
        let [theirs, _] = said;
        theirs
    }

    /// Runs it until its output holds `text`.
    #[track_caller]
    pub(crate) fn until(&self, whose: Kind, arguments: &[&str], text: &str) {
        let began = clock::now();
        loop {
            let said = self.run(whose, arguments, "");
            if said.out.contains(text) {
                return;
            }
            assert!(
                clock::now().since(began) < PATIENCE,
                "{whose:?} {arguments:?} never says {text:?}: {said:#?}"
            );
        }
    }

    fn differ(&self, arguments: &[&str], theirs: &Said, ours: &Said) {
        self.differences.borrow_mut().push(format!(
            "patronictl {}\n--- Patroni's: {:?}\n{}\n{}\n--- ours: {:?}\n{}\n{}\n",
            arguments.join(" "),
            theirs.status,
            theirs.out,
            theirs.err,
            ours.status,
            ours.out,
            ours.err
        ));
    }
}

/// All differences at once, when the story ends.
impl Drop for Tools {
    fn drop(&mut self) {
        let found = self.differences.borrow();
        if std::thread::panicking() {
            println!("{}", found.join("\n"));
        } else {
            assert!(found.is_empty(), "{}", found.join("\n"));
        }
    }
}
