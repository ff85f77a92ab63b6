//! The text of `synchronous_standby_names` (spec/ha.md §12.5): read with PostgreSQL's own grammar, written in one form per case.
//!
//! It never decides who is listed.

use crate::types::PgVersion;

/// How the listed servers are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ha) enum Method {
    /// The first ones that are connected, in the order of the list.
    First,
    /// Any of them.
    Any,
}

/// A value of `synchronous_standby_names` that is not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::ha) struct Names {
    pub(in crate::ha) method: Method,
    /// How many of them must confirm a commit.
    pub(in crate::ha) count: u32,
    /// As written, quotes removed. `*` stands for everybody and is kept as it is: nobody of that name exists, so it gets replaced.
    pub(in crate::ha) names: Vec<String>,
}

/// Reads a value. `None`: empty, or nothing that PostgreSQL would accept.
pub(in crate::ha) fn parse(text: &str) -> Option<Names> {
    let tokens = tokens(text)?;
    let (method, rest) = match tokens.as_slice() {
        [Token::Word(word), Token::Word(count), Token::Open, ..]
            if is_number(count) && word.eq_ignore_ascii_case("any") =>
        {
            (Method::Any, &tokens[1..])
        }
        [Token::Word(word), Token::Word(count), Token::Open, ..]
            if is_number(count) && word.eq_ignore_ascii_case("first") =>
        {
            (Method::First, &tokens[1..])
        }
        all => (Method::First, all),
    };
    let (count, list) = match rest {
        [Token::Word(count), Token::Open, list @ .., Token::Close] if is_number(count) => {
            (count.parse().ok()?, list)
        }
        list => (1, list),
    };
    let mut names = Vec::new();
    for (position, token) in list.iter().enumerate() {
        match (position % 2, token) {
            (0, Token::Word(name) | Token::Quoted(name)) => names.push(name.clone()),
            (1, Token::Comma) => {}
            (_, Token::Word(_) | Token::Quoted(_) | Token::Comma | Token::Open | Token::Close) => {
                return None;
            }
        }
    }
    (!names.is_empty() && list.len() % 2 == 1).then_some(Names {
        method,
        count,
        names,
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Quoted(String),
    Comma,
    Open,
    Close,
}

fn is_number(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit())
}

fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(next) = rest.next() {
        match next {
            ' ' | '\t' | '\n' | '\r' | '\u{b}' | '\u{c}' => {}
            ',' => tokens.push(Token::Comma),
            '(' => tokens.push(Token::Open),
            ')' => tokens.push(Token::Close),
            '*' => tokens.push(Token::Word("*".to_owned())),
            '"' => {
                let mut name = String::new();
                loop {
                    match rest.next()? {
                        '"' if rest.peek() == Some(&'"') => {
                            rest.next();
                            name.push('"');
                        }
                        '"' => break,
                        other => name.push(other),
                    }
                }
                tokens.push(Token::Quoted(name));
            }
            first if is_word(first) => {
                let mut word = String::from(first);
                while let Some(&more) = rest.peek().filter(|c| is_word(**c) || **c == '$') {
                    word.push(more);
                    rest.next();
                }
                tokens.push(Token::Word(word));
            }
            _ => return None,
        }
    }
    Some(tokens)
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || !c.is_ascii()
}

/// Writes a value for this release; `None`: the setting is removed.
pub(in crate::ha) fn render(names: &Names, version: PgVersion) -> Option<String> {
    let mut sorted: Vec<&str> = names.names.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    let quoted: Vec<String> = sorted.iter().map(|name| quote(name)).collect();
    let (count, list) = (names.count, quoted.join(","));
    let first = quoted.first()?.clone();
    Some(match names.method {
        _ if version < PgVersion(90_600) => first,
        Method::Any if version.at_least(10) => format!("ANY {count} ({list})"),
        Method::Any => format!("{count} ({list})"),
        Method::First if quoted.len() == 1 && count == 1 => first,
        Method::First => format!("{count} ({list})"),
    })
}

fn quote(name: &str) -> String {
    let plain = name
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$');
    let keyword = name.eq_ignore_ascii_case("first") || name.eq_ignore_ascii_case("any");
    if (plain && !keyword) || name == "*" {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(method: Method, count: u32, names: &[&str]) -> Names {
        Names {
            method,
            count,
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn reads_every_form_of_the_grammar() {
        let cases = [
            ("a", names(Method::First, 1, &["a"])),
            (" a , b ", names(Method::First, 1, &["a", "b"])),
            ("2 (a,b, c)", names(Method::First, 2, &["a", "b", "c"])),
            ("FIRST 2 (a,b)", names(Method::First, 2, &["a", "b"])),
            ("any 1(\"n-1\",b)", names(Method::Any, 1, &["n-1", "b"])),
            ("\"a\"\"b\"", names(Method::First, 1, &["a\"b"])),
            ("*", names(Method::First, 1, &["*"])),
            ("ANY 2 (*)", names(Method::Any, 2, &["*"])),
            ("any", names(Method::First, 1, &["any"])),
            ("7, first", names(Method::First, 1, &["7", "first"])),
        ];
        for (text, wanted) in cases {
            assert_eq!(parse(text), Some(wanted), "{text}");
        }
    }

    #[test]
    fn what_postgresql_refuses_counts_as_empty() {
        for text in ["", "  ", "a b", "a,", "1 ()", "(a)", "\"a", "2 (a", "a;b"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn writes_the_form_of_each_release() {
        let one = |method| names(method, 1, &["n-1"]);
        let two = |method| names(method, 2, &["b", "a"]);
        let (old, nine_six, now) = (PgVersion(90_500), PgVersion(90_624), PgVersion(150_004));
        let text = |names: &Names, version| render(names, version);
        assert_eq!(text(&one(Method::First), now).as_deref(), Some("\"n-1\""));
        assert_eq!(text(&two(Method::First), now).as_deref(), Some("2 (a,b)"));
        assert_eq!(
            text(&one(Method::Any), now).as_deref(),
            Some("ANY 1 (\"n-1\")")
        );
        assert_eq!(text(&two(Method::Any), now).as_deref(), Some("ANY 2 (a,b)"));
        assert_eq!(
            text(&two(Method::Any), nine_six).as_deref(),
            Some("2 (a,b)")
        );
        assert_eq!(text(&two(Method::First), old).as_deref(), Some("a"));
        assert_eq!(text(&names(Method::Any, 1, &[]), now), None);
        assert_eq!(
            text(&names(Method::First, 1, &["Any"]), now).as_deref(),
            Some("\"Any\"")
        );
    }

    #[test]
    fn what_is_written_can_be_read() {
        for listed in [vec!["a"], vec!["first", "x\"y"], vec!["n-1", "n-2", "_z$"]] {
            for method in [Method::Any, Method::First] {
                let count = u32::try_from(listed.len()).unwrap();
                let wanted = names(method, count, &listed);
                let text = render(&wanted, PgVersion(170_000)).unwrap();
                let mut read = parse(&text).unwrap();
                let mut sorted = wanted.names.clone();
                read.names.sort();
                sorted.sort();
                assert_eq!(
                    (read.count, read.method, read.names),
                    (count, method, sorted)
                );
            }
        }
    }
}
