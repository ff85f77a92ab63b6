//! `patroni_barman`: asks pg-backup-api for a recovery (`recover`: a bootstrap or replica method), or for another configuration of a
//! Barman server (`config-switch`: a callback).

use std::io::Write as _;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Method, Request};
use serde_json::{Value, json};

use crate::peers::{CallError, Client, ClientSettings, Verify};

use super::{Parsed, Say};

const USAGE: &str = "\
Usage: patroni_barman --api-url URL [--cert-file FILE] [--key-file FILE] [--retry-wait 2] [--max-retries 5] [--log-file FILE] COMMAND
  recover --barman-server NAME --ssh-command COMMAND --data-directory DIR [--backup-id latest] [--loop-wait 10]
  config-switch --barman-server NAME {--barman-model NAME | --reset} --switch-when {promoted|demoted|always} ACTION ROLE CLUSTER";

/// Also when the API does not answer at all.
const API_NOT_OK: u8 = 254;
const NO_COMMAND: u8 = 255;
const WRONG_USAGE: u8 = 2;
/// Time for one answer.
const ANSWER: Duration = Duration::from_secs(30);
/// Seconds between two looks at a change of the configuration, unless `--loop-wait` says otherwise.
const SWITCH_WAIT: u64 = 5;

const KNOWN: [&str; 13] = [
    "api-url",
    "cert-file",
    "key-file",
    "retry-wait",
    "max-retries",
    "log-file",
    "barman-server",
    "ssh-command",
    "data-directory",
    "datadir",
    "backup-id",
    "loop-wait",
    "barman-model",
];

pub(super) async fn run(arguments: &[String], say: &mut Say<'_>) -> u8 {
    let known: Vec<&str> = KNOWN.into_iter().chain(["switch-when"]).collect();
    let parsed = match Parsed::new(arguments, &known, &["reset", "help"]) {
        Ok(parsed) => parsed,
        Err(why) => {
            say(&format!("{USAGE}\n{why}"));
            return WRONG_USAGE;
        }
    };
    let mut file = parsed.get("log-file").and_then(|path| {
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(path);
        file.map_err(|why| say(&format!("{path}: {why}"))).ok()
    });
    let mut say = |line: &str| match &mut file {
        // A full disk is no reason to stop a recovery.
        Some(file) => drop(writeln!(file, "{line}")),
        None => say(line),
    };
    let (command, words) = match parsed.words.split_first() {
        Some((command, words)) => (command.as_str(), words),
        None => ("", [].as_slice()),
    };
    if !matches!(command, "recover" | "config-switch") {
        say(USAGE);
        return NO_COMMAND;
    }
    let api = match Api::new(&parsed) {
        Ok(api) => api,
        Err(why) => {
            say(&format!("{USAGE}\n{why}"));
            return WRONG_USAGE;
        }
    };
    if command == "config-switch" {
        return match Switch::new(&parsed, words) {
            Err(why) => {
                say(&format!("{USAGE}\n{why}"));
                4
            }
            Ok(switch) if !switch.is_due() => {
                say(&format!("nothing to do when the role is {}", switch.role));
                1
            }
            Ok(switch) => {
                if let Err(why) = api.is_well().await {
                    say(&why);
                    return API_NOT_OK;
                }
                let ends = [(Ok(true), 0), (Ok(false), 2), (Err(()), 3)];
                end(
                    api.operate(switch.server, &switch.request, switch.wait)
                        .await,
                    &ends,
                    &mut say,
                )
            }
        };
    }
    let recovery = match recovery(&parsed) {
        Ok(recovery) => recovery,
        Err(why) => {
            say(&format!("{USAGE}\n{why}"));
            return WRONG_USAGE;
        }
    };
    if let Err(why) = api.is_well().await {
        say(&why);
        return API_NOT_OK;
    }
    let (server, request, wait) = recovery;
    let ends = [(Ok(true), 0), (Ok(false), 1), (Err(()), 2)];
    end(api.operate(server, &request, wait).await, &ends, &mut say)
}

/// The exit status of an outcome.
fn end(
    outcome: Result<bool, String>,
    ends: &[(Result<bool, ()>, u8)],
    say: &mut dyn FnMut(&str),
) -> u8 {
    let kind = match outcome {
        Ok(true) => Ok(true),
        Ok(false) => {
            say("the operation has failed; Barman's log says why");
            Ok(false)
        }
        Err(why) => {
            say(&why);
            Err(())
        }
    };
    ends.iter()
        .find(|(of, _)| *of == kind)
        .map_or(1, |(_, status)| *status)
}

fn recovery(parsed: &Parsed) -> Result<(&str, Value, Duration), String> {
    let directory = parsed
        .get("data-directory")
        .map_or_else(|| parsed.required("datadir"), Ok)
        .map_err(|_| "--data-directory is required".to_owned())?;
    let request = json!({
        "type": "recovery",
        "backup_id": parsed.get("backup-id").unwrap_or("latest"),
        "remote_ssh_command": parsed.required("ssh-command")?,
        "destination_directory": directory,
    });
    let wait = parsed.number("loop-wait", 10)?;
    Ok((
        parsed.required("barman-server")?,
        request,
        Duration::from_secs(wait),
    ))
}

/// `config-switch`.
struct Switch<'a> {
    server: &'a str,
    request: Value,
    when: &'a str,
    role: &'a str,
    wait: Duration,
}

impl Switch<'_> {
    fn new<'a>(parsed: &'a Parsed, words: &'a [String]) -> Result<Switch<'a>, String> {
        let [_, role, _] = words else {
            return Err("ACTION, ROLE and CLUSTER are required".to_owned());
        };
        let known = [
            "primary",
            "promoted",
            "standby_leader",
            "replica",
            "demoted",
        ];
        if !known.contains(&role.as_str()) {
            return Err(format!("{role} is no role"));
        }
        let when = parsed.required("switch-when")?;
        if !matches!(when, "promoted" | "demoted" | "always") {
            return Err(format!(
                "--switch-when: {when} is none of promoted, demoted, always"
            ));
        }
        let request = match (parsed.get("barman-model"), parsed.get("reset")) {
            (Some(model), None) => json!({"type": "config_switch", "model_name": model}),
            (None, Some(_)) => json!({"type": "config_switch", "reset": true}),
            _ => return Err("one of --barman-model and --reset is required".to_owned()),
        };
        Ok(Switch {
            server: parsed.required("barman-server")?,
            request,
            when,
            role,
            wait: Duration::from_secs(parsed.number("loop-wait", SWITCH_WAIT)?),
        })
    }

    fn is_due(&self) -> bool {
        match self.when {
            "promoted" => matches!(self.role, "primary" | "promoted"),
            "demoted" => matches!(self.role, "replica" | "demoted"),
            _ => true,
        }
    }
}

struct Api {
    client: Client,
    url: String,
    /// What the URL has after its host.
    base: String,
    pause: Duration,
    attempts: u32,
}

impl Api {
    fn new(parsed: &Parsed) -> Result<Api, String> {
        let url = parsed.required("api-url")?.trim_end_matches('/');
        let after_host = url
            .split_once("://")
            .and_then(|(_, rest)| rest.split_once('/'))
            .map_or("", |(_, path)| path);
        let settings = ClientSettings {
            certfile: parsed.get("cert-file").map(str::to_owned),
            keyfile: parsed.get("key-file").map(str::to_owned),
            verify: Verify::Full,
            ..ClientSettings::default()
        };
        Ok(Api {
            client: Client::new(&settings).map_err(|error| error.to_string())?,
            url: url.to_owned(),
            base: if after_host.is_empty() {
                String::new()
            } else {
                format!("/{after_host}")
            },
            pause: Duration::from_secs(parsed.number("retry-wait", 2)?),
            attempts: parsed.number("max-retries", 5)?,
        })
    }

    /// A request whose answer got lost is repeated only where that does no harm.
    async fn call(&self, path: &str, body: Option<&Value>) -> Result<String, String> {
        let mut left = self.attempts;
        loop {
            let method = if body.is_some() {
                Method::POST
            } else {
                Method::GET
            };
            let text = body.map(Value::to_string).unwrap_or_default();
            let request = Request::builder()
                .method(method)
                .uri(format!("{}/{path}", self.base))
                .header("content-type", "application/json")
                .body(Full::new(Bytes::from(text)))
                .map_err(|error| error.to_string())?;
            let why = match self.client.request(&self.url, request, ANSWER).await {
                Ok(answer) if (200..300).contains(&answer.status) => return Ok(answer.body),
                Ok(answer) => {
                    let body: String = answer.body.chars().take(300).collect();
                    return Err(format!("{path}: status {}, {body}", answer.status));
                }
                Err(CallError::Unanswered(why)) if body.is_some() => return Err(why),
                Err(error) => error.to_string(),
            };
            if left == 0 {
                return Err(format!("{path}: {why}"));
            }
            left -= 1;
            tokio::time::sleep(self.pause).await;
        }
    }

    async fn is_well(&self) -> Result<(), String> {
        let status = self.call("status", None).await?;
        if status.trim() == "\"OK\"" {
            Ok(())
        } else {
            Err(format!("pg-backup-api is not well: {status}"))
        }
    }

    /// Starts an operation and waits for its end: whether it was done or has failed.
    async fn operate(&self, server: &str, request: &Value, wait: Duration) -> Result<bool, String> {
        let path = format!("servers/{server}/operations");
        let parse = |text: &str| {
            serde_json::from_str::<Value>(text).map_err(|why| format!("{path}: {why}"))
        };
        let started = parse(&self.call(&path, Some(request)).await?)?;
        let id = started
            .get("operation_id")
            .and_then(Value::as_str)
            .ok_or_else(|| format!("{path}: there is no operation_id in {started}"))?;
        // Barman goes on writing whatever becomes of an answer: only a row of bad ones ends the wait.
        let mut left = self.attempts;
        loop {
            let answer = self.call(&format!("{path}/{id}"), None).await;
            let seen = answer.and_then(|text| parse(&text));
            let status = seen
                .as_ref()
                .ok()
                .and_then(|seen| seen.get("status")?.as_str());
            match (status, left) {
                (Some("DONE"), _) => return Ok(true),
                (Some("FAILED"), _) => return Ok(false),
                (Some("IN_PROGRESS"), _) => left = self.attempts,
                (_, 0) => {
                    return Err(seen.map_or_else(
                        |why| why,
                        |seen| format!("{path}/{id}: no status in {seen}"),
                    ));
                }
                (_, _) => left -= 1,
            }
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::super::tests::words;
    use super::*;

    /// Plays pg-backup-api: an operation is in progress when it is first looked at, then two answers are no good, and then it is `last`.
    /// One that is `LOST` never has a good answer again.
    async fn stand_in(well: &'static str, last: &'static str) -> (String, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/base", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let kept = asked.clone();
        tokio::spawn(async move {
            let mut looks = 0;
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = String::new();
                while !request.contains("\r\n\r\n")
                    || (request.starts_with("POST") && !request.ends_with('}'))
                {
                    let mut buffer = [0; 4096];
                    let count = stream.read(&mut buffer).await.unwrap_or(0);
                    assert!(count > 0, "an unfinished request: {request}");
                    request.push_str(&String::from_utf8_lossy(&buffer[..count]));
                }
                let line = request.lines().next().unwrap_or_default();
                let (status, body) = match line {
                    "GET /base/status HTTP/1.1" => (200, well.to_owned()),
                    "POST /base/servers/main/operations HTTP/1.1" => {
                        let body = request.split("\r\n\r\n").nth(1).unwrap_or_default();
                        kept.lock().unwrap().push(body.to_owned());
                        (202, r#"{"operation_id": "op-1"}"#.to_owned())
                    }
                    "GET /base/servers/main/operations/op-1 HTTP/1.1" => {
                        looks += 1;
                        match (looks, last) {
                            (1, _) => (200, r#"{"status": "IN_PROGRESS"}"#.to_owned()),
                            (2, _) => (502, "a proxy".to_owned()),
                            (3, _) | (_, "LOST") => (200, "[]".to_owned()),
                            _ => (200, json!({"status": last}).to_string()),
                        }
                    }
                    _ => (404, "not there".to_owned()),
                };
                let answer = format!(
                    "HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (url, asked)
    }

    async fn ran(line: &str) -> (u8, String) {
        let mut said = String::new();
        let mut say = |line: &str| said.push_str(&format!("{line}\n"));
        (run(&words(line), &mut say).await, said)
    }

    const RECOVER: &str = "recover --barman-server main --ssh-command ssh --datadir=/data --loop-wait 0 --scope=x --role=replica --connstring=y";

    #[tokio::test]
    async fn a_recovery_is_asked_for_and_waited_for() {
        for (last, code) in [("DONE", 0), ("FAILED", 1)] {
            let (url, asked) = stand_in("\"OK\"", last).await;
            let (got, said) = ran(&format!("--api-url {url} {RECOVER} --backup-id b7")).await;
            assert_eq!(got, code, "{said}");
            let sent: Value = serde_json::from_str(&asked.lock().unwrap()[0]).unwrap();
            assert_eq!(
                sent,
                json!({"type": "recovery", "backup_id": "b7", "remote_ssh_command": "ssh", "destination_directory": "/data"})
            );
        }
        let (url, _) = stand_in("\"OK\"", "LOST").await;
        let (code, said) = ran(&format!("--api-url {url} {RECOVER}")).await;
        assert!(code == 2 && said.contains("no status"), "{said}");
        let (url, _) = stand_in("\"OK\"", "DONE").await;
        let elsewhere = RECOVER.replace("main", "other");
        let (code, said) = ran(&format!("--api-url {url} {elsewhere}")).await;
        assert!(code == 2 && said.contains("status 404"), "{said}");
    }

    #[tokio::test]
    async fn a_configuration_is_switched_when_the_role_asks_for_it() {
        let always = "config-switch --barman-server main --switch-when always --reset";
        let model = "config-switch --barman-server main --barman-model m --switch-when";
        for (line, code, sent) in [
            (
                format!("{always} on_role_change replica c"),
                0,
                json!({"type": "config_switch", "reset": true}),
            ),
            (
                format!("{model} promoted on_role_change primary c"),
                0,
                json!({"type": "config_switch", "model_name": "m"}),
            ),
            (
                format!("{model} promoted on_role_change replica c"),
                1,
                Value::Null,
            ),
            (
                format!("{model} demoted on_role_change standby_leader c"),
                1,
                Value::Null,
            ),
            (
                format!("{model} sometimes on_role_change replica c"),
                4,
                Value::Null,
            ),
            (
                format!("{model} always --reset on_role_change replica c"),
                4,
                Value::Null,
            ),
            (
                format!("{model} always on_role_change boss c"),
                4,
                Value::Null,
            ),
            (format!("{model} always"), 4, Value::Null),
        ] {
            let (url, asked) = stand_in("\"OK\"", "DONE").await;
            let (got, said) = ran(&format!("--api-url {url} --loop-wait 0 {line}")).await;
            assert_eq!(got, code, "{line}: {said}");
            let asked = asked.lock().unwrap().first().cloned();
            let asked = asked.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap());
            assert_eq!(asked, sent, "{line}");
        }
    }

    #[tokio::test]
    async fn an_api_that_is_not_well_or_not_there_has_its_own_status() {
        let (url, _) = stand_in("\"sick\"", "DONE").await;
        assert_eq!(ran(&format!("--api-url {url} {RECOVER}")).await.0, 254);
        let gone = "--api-url http://127.0.0.1:1 --retry-wait 0 --max-retries 1";
        assert_eq!(ran(&format!("{gone} {RECOVER}")).await.0, 254, "P6");
        assert_eq!(ran("--api-url http://127.0.0.1:1").await.0, 255);
        assert_eq!(ran("recover --barman-server main").await.0, 2);
    }
}
