//! A headless Chromium, driven by its own protocol over two named pipes.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use howdah::clock;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

/// One page in a browser of its own.
pub(crate) struct Browser {
    chromium: Child,
    requests: File,
    messages: Receiver<Value>,
    last_id: u64,
    session: Option<String>,
    /// What the page threw, and what its policy forbade.
    pub(crate) faults: Vec<String>,
    _folder: tempfile::TempDir,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.chromium.kill();
        let _ = self.chromium.wait();
    }
}

impl Browser {
    /// Opens the page at this address.
    pub(crate) fn open(url: &str) -> Browser {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["in", "out"] {
            let made = Command::new("mkfifo").arg(path(name)).status().unwrap();
            assert!(made.success(), "mkfifo");
        }
        let profile = format!("--user-data-dir={}", path("profile").display());
        let chromium = Command::new("sh")
            .args([
                "-c",
                r#"in=$1 out=$2; shift 2; exec chromium "$@" 3<"$in" 4>"$out""#,
                "sh",
            ])
            .args([path("in"), path("out")])
            .args([
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
            ])
            .args([
                "--no-first-run",
                "--disable-background-networking",
                "--remote-debugging-pipe",
            ])
            .arg(profile)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let requests = pipe(&path("in"), OpenOptions::new().write(true));
        let answers = pipe(&path("out"), OpenOptions::new().read(true));
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            let mut answers = BufReader::new(answers);
            let mut message = Vec::new();
            while answers
                .read_until(0, &mut message)
                .is_ok_and(|count| count > 0)
            {
                message.pop();
                if let Ok(message) = serde_json::from_slice(&message) {
                    let _ = sender.send(message);
                }
                message.clear();
            }
        });
        let mut browser = Browser {
            chromium,
            requests,
            messages,
            last_id: 0,
            session: None,
            faults: Vec::new(),
            _folder: folder,
        };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}));
        let target = target["targetId"].as_str().unwrap().to_owned();
        let attach = json!({"targetId": target, "flatten": true});
        let session = browser.call("Target.attachToTarget", attach);
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Runtime.enable", "Log.enable", "Page.enable"] {
            browser.call(domain, json!({}));
        }
        browser.call("Page.navigate", json!({"url": url}));
        browser
    }

    /// One call of the protocol.
    pub(crate) fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let mut request = json!({"id": self.last_id, "method": method, "params": params});
        if let Some(session) = &self.session {
            request["sessionId"] = session.as_str().into();
        }
        self.requests
            .write_all(format!("{request}\0").as_bytes())
            .unwrap();
        loop {
            let message = self
                .messages
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|why| panic!("{method}: {why}"));
            if message["id"] == self.last_id {
                assert!(message.get("error").is_none(), "{method}: {message}");
                return message["result"].clone();
            }
            let text = message.to_string();
            if message["method"] == "Runtime.exceptionThrown"
                || text.contains("Content Security Policy")
            {
                self.faults.push(text);
            }
        }
    }

    /// The value of an expression in the page.
    pub(crate) fn eval(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let result = self.call("Runtime.evaluate", params);
        assert!(
            result.get("exceptionDetails").is_none(),
            "{expression}: {result}"
        );
        result["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    pub(crate) fn until(&mut self, expression: &str) {
        let end = clock::now() + PATIENCE;
        while self.eval(expression) != Value::Bool(true) {
            assert!(
                clock::now() < end,
                "never true: {expression}\n{}",
                self.text()
            );
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// What the page shows.
    pub(crate) fn text(&mut self) -> String {
        let text = self.eval("document.body.innerText");
        text.as_str().unwrap_or_default().to_owned()
    }

    /// The names and roles that a screen reader is told.
    pub(crate) fn spoken(&mut self) -> Vec<(String, String)> {
        let tree = self.call("Accessibility.getFullAXTree", json!({}));
        let nodes = tree["nodes"].as_array().unwrap().iter();
        nodes
            .filter(|node| node["ignored"] != true)
            .map(|node| {
                let text = |key: &str| node[key]["value"].as_str().unwrap_or_default().to_owned();
                (text("role"), text("name"))
            })
            .collect()
    }
}

/// A pipe blocks whoever opens it until somebody has opened its other end.
fn pipe(path: &Path, how: &OpenOptions) -> File {
    let (how, path) = (how.clone(), path.to_owned());
    let (sender, opened) = channel();
    std::thread::spawn(move || sender.send(how.open(path)));
    opened
        .recv_timeout(PATIENCE)
        .expect("chromium starts: it is Debian's package of that name")
        .unwrap()
}
