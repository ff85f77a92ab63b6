//! The helper programs that configurations name (spec/packaging.md §2), under Patroni's names for them: a callback that tags EC2
//! instances, and two ways to create a replica from a backup. None of them knows the cluster; each does one thing and ends.

mod aws;
mod barman;
mod wale;

use std::collections::BTreeMap;
use std::io::Write as _;

use crate::config::Environment;

/// One of the programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Helper {
    /// `patroni_aws`.
    Aws,
    /// `patroni_barman`.
    Barman,
    /// `patroni_wale_restore`.
    WaleRestore,
}

impl Helper {
    /// By the name of the link (`patroni_aws`) or of the subcommand (`aws`).
    #[must_use]
    pub fn named(name: &str) -> Option<Helper> {
        match name.strip_prefix("patroni_").unwrap_or(name) {
            "aws" => Some(Helper::Aws),
            "barman" => Some(Helper::Barman),
            "wale_restore" | "wale-restore" => Some(Helper::WaleRestore),
            _ => None,
        }
    }
}

/// Where a helper says what it does, a line each.
type Say<'a> = dyn FnMut(&str) + Send + 'a;

/// Runs a helper; `arguments` without the program's name. Returns the exit status.
pub fn main(helper: Helper, arguments: &[String], environment: &dyn Environment) -> u8 {
    let variables = environment.variables();
    let mut say = |line: &str| {
        // Nobody is left to tell when standard error is gone.
        let _ = writeln!(std::io::stderr(), "{line}");
    };
    if helper == Helper::WaleRestore {
        return wale::run(arguments, &variables, &mut say);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            say(&format!("cannot start the runtime: {error}"));
            return 1;
        }
    };
    match helper {
        Helper::Aws => runtime.block_on(aws::run(arguments, &variables, &mut say, aws::PATIENCE)),
        Helper::Barman | Helper::WaleRestore => runtime.block_on(barman::run(arguments, &mut say)),
    }
}

/// A command line of options with a value, flags, and words that are neither.
#[derive(Debug, Default, PartialEq)]
struct Parsed {
    options: BTreeMap<String, String>,
    words: Vec<String>,
}

impl Parsed {
    /// `--name value` and `--name=value`; `_` and `-` in names are the same. Options that are not `known` are left out: Patroni appends
    /// its own, which not every helper wants. `flags` take no value.
    fn new(arguments: &[String], known: &[&str], flags: &[&str]) -> Result<Parsed, String> {
        let mut parsed = Parsed::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let Some(option) = argument.strip_prefix("--") else {
                parsed.words.push(argument.clone());
                continue;
            };
            let (name, given) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (option, None),
            };
            let name = name.replace('_', "-");
            if flags.contains(&name.as_str()) {
                parsed.options.insert(name, String::new());
            } else if known.contains(&name.as_str()) {
                let value = given
                    .or_else(|| arguments.next().cloned())
                    .ok_or_else(|| format!("--{name} needs a value"))?;
                parsed.options.insert(name, value);
            }
        }
        Ok(parsed)
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str)
    }

    fn required(&self, name: &str) -> Result<&str, String> {
        self.get(name)
            .ok_or_else(|| format!("--{name} is required"))
    }

    fn number<T: std::str::FromStr>(&self, name: &str, default: T) -> Result<T, String> {
        match self.get(name) {
            None => Ok(default),
            Some(text) => text
                .parse()
                .map_err(|_| format!("--{name}: {text:?} is not a number")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn options_are_read_in_both_spellings_and_foreign_ones_left_out() {
        let line = "recover --data_directory=/d --backup-id b1 --connstring=x --reset word";
        let parsed =
            Parsed::new(&words(line), &["data-directory", "backup-id"], &["reset"]).unwrap();
        assert_eq!(parsed.get("data-directory"), Some("/d"));
        assert_eq!(parsed.get("backup-id"), Some("b1"));
        assert_eq!(parsed.get("reset"), Some(""));
        assert_eq!(parsed.words, ["recover", "word"]);
        assert!(Parsed::new(&words("--backup-id"), &["backup-id"], &[]).is_err());
    }

    #[test]
    fn names_of_links_and_subcommands() {
        assert_eq!(Helper::named("patroni_aws"), Some(Helper::Aws));
        assert_eq!(Helper::named("barman"), Some(Helper::Barman));
        assert_eq!(
            Helper::named("patroni_wale_restore"),
            Some(Helper::WaleRestore)
        );
        assert_eq!(Helper::named("patroni"), None);
    }
}
