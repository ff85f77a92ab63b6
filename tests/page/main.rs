//! The page for people in a real browser: what it shows, that it follows the cluster, who gets buttons, and that phones, dark screens and
//! screen readers are served.
//!
//! The API is the real one over a cluster that is made up. HOWDAH_SCREENSHOT=FILE keeps a picture of the page.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod browser;

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use howdah::api::{self, Credentials, Settings};
use howdah::clock;
use howdah::dcs::Identity;
use howdah::dcs::memory::{MemoryNode, MemoryStore};
use howdah::node::{
    Command, NodeView, PgTimestamp, PostgresStatus, RestartOutcome, Snapshot, ViewSender, Xlog,
};
use howdah::peers::ClientSettings;
use howdah::types::{Lsn, MemberName, PgState, PgVersion, Role};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use browser::Browser;

/// A node `pg1` with an API and a cluster of three in its store.
struct Node {
    address: String,
    view: ViewSender,
    store: MemoryStore,
    identity: Identity,
    /// Restarts that the API has asked its agent for.
    restarts: Receiver<()>,
}

impl Node {
    fn start() -> Node {
        let store = MemoryStore::new(clock::now);
        let identity = Identity {
            name: Some(MemberName::new("pg1").unwrap()),
            base: "/service/demo".to_owned(),
            group: None,
            ttl: Duration::from_secs(30),
            retry_timeout: Duration::from_secs(10),
        };
        let mut view = NodeView::starting(MemberName::new("pg1").unwrap(), "demo", clock::now());
        view.state = PgState::Running;
        view.role = Role::Primary;
        view.leader_until = Some(clock::now() + Duration::from_secs(3600));
        view.postgres = Some(PostgresStatus {
            server_version: PgVersion(170_002),
            postmaster_start_time: PgTimestamp(0),
            timeline: None,
            xlog: Xlog::Primary { location: Lsn(1) },
            replication_state: None,
            replication: Vec::new(),
            replaying: false,
        });
        let (view, seen) = watch::channel(Arc::new(view));
        let credentials = Credentials {
            username: "ops".to_owned(),
            password: "pa:ss".to_owned(),
        };
        let settings = Settings {
            listen: "127.0.0.1:0".to_owned(),
            authentication: Some(credentials.clone()),
            client: ClientSettings {
                credentials: Some(credentials),
                ..ClientSettings::default()
            },
            ..Settings::default()
        };
        let slot = Arc::new(OnceLock::new());
        assert!(slot.set(store.open(&identity)).is_ok());
        let (address_sender, address) = channel();
        let (restart, restarts) = channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let (_settings, settings) = watch::channel(Arc::new(settings));
                let (commands, mut asked) = mpsc::channel(8);
                let bound = api::bind(settings, seen, commands, slot).await.unwrap();
                address_sender
                    .send(bound.local_addr().unwrap().to_string())
                    .unwrap();
                let agent = async {
                    while let Some(command) = asked.recv().await {
                        if let Command::Restart { reply, .. } = command {
                            let _ = reply.send(RestartOutcome::Done);
                            let _ = restart.send(());
                        }
                    }
                };
                let (served, ()) = tokio::join!(bound.serve(), agent);
                served.unwrap();
            });
        });
        let node = Node {
            address: address.recv_timeout(Duration::from_secs(10)).unwrap(),
            view,
            store,
            identity,
            restarts,
        };
        node.put("config", &json!({"ttl": 30}));
        node.put("initialize", &json!(7_301_234_567_890_123_456_u64));
        node.put("status", &json!({"optime": 100_000_000}));
        let history = json!([
            [
                1,
                25_623_960,
                "no recovery target specified",
                "2026-01-01T00:00:00+00:00",
                "pg2"
            ],
            [
                2,
                83_886_080,
                "no recovery target specified",
                "2026-02-01T00:00:00+00:00",
                "pg1"
            ]
        ]);
        node.put("history", &history);
        node.member("pg1", 1, &json!({"role": "primary"}));
        let streams = json!({"role": "replica", "replication_state": "streaming", "xlog_location": 100_000_000});
        node.member("pg2", 2, &streams);
        let behind = json!({"role": "replica", "replication_state": "in archive recovery", "xlog_location": 90_000_000,
            "tags": {"replicatefrom": "pg2", "note": "<img src=x onerror=alert(1)>"}, "pending_restart": true,
            "pending_restart_reason": {"max_connections": {"old_value": "100", "new_value": "200"}}});
        node.member("pg3", 3, &behind);
        node.lead("pg1");
        node
    }

    fn url(&self) -> String {
        format!("http://{}/ui", self.address)
    }

    fn put(&self, key: &str, value: &Value) {
        let text = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let node = MemoryNode::new(&self.identity);
        self.store.with(|state| state.put_raw(&node, key, &text));
    }

    fn member(&self, name: &str, number: u8, more: &Value) {
        let mut document = json!({
            "conn_url": format!("postgres://10.0.0.{number}:5432/postgres"),
            "api_url": format!("http://{}/patroni", self.address),
            "state": "running",
            "timeline": 3,
        });
        for (key, value) in more.as_object().unwrap() {
            document[key] = value.clone();
        }
        self.put(&format!("members/{name}"), &document);
    }

    /// This member holds the key, and the node has seen it.
    fn lead(&self, name: &str) {
        self.put("leader", &json!(name));
        self.publish();
    }

    fn publish(&self) {
        let node = MemoryNode::new(&self.identity);
        let cluster = self.store.with(|state| state.load(clock::now(), &node));
        self.view.send_modify(|view| {
            Arc::make_mut(view).snapshot = Some(Snapshot {
                cluster: Arc::new(cluster),
                read_at: clock::now(),
            });
        });
    }
}

fn rows(browser: &mut Browser) -> Vec<String> {
    let script = "[...document.querySelectorAll('#members tr')].map(row => row.innerText.replace(/\\s+/g, ' ').trim())";
    serde_json::from_value(browser.eval(script)).unwrap()
}

#[test]
fn it_shows_the_cluster_and_follows_it() {
    let node = Node::start();
    let mut browser = Browser::open(&node.url());
    browser.until("document.querySelectorAll('#members tr').length === 3");
    let shown = rows(&mut browser);
    assert!(shown[0].starts_with("pg1 Leader running 3"), "{shown:?}");
    assert!(
        shown[1].starts_with("pg2 Replica streaming 3 0 B"),
        "{shown:?}"
    );
    assert!(
        shown[2].starts_with("pg3 Replica in archive recovery 3 9.5 MB"),
        "{shown:?}"
    );
    for note in [
        "max_connections: 100 → 200",
        "replicatefrom: pg2",
        "note: <img src=x",
    ] {
        assert!(shown[2].contains(note), "{note}: {shown:?}");
    }
    let text = browser.text();
    for part in [
        "demo",
        "pg1 leads · 3 members",
        "pg2 is not the leader (pg1 is)",
        "0/5000000",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(
        browser.eval("document.querySelectorAll('svg polyline').length"),
        2
    );
    // Another leader, a pause, a lost member: nobody reloads the page.
    node.put("config", &json!({"pause": true}));
    node.lead("pg2");
    browser.until("document.getElementById('summary').textContent.includes('pg2 leads')");
    browser.until("document.getElementById('summary').textContent.includes('paused')");
    let shown = rows(&mut browser);
    assert!(shown[0].starts_with("pg2 Leader"), "{shown:?}");
    // The store is lost: what is known stays, and is called old.
    node.view
        .send_modify(|view| Arc::make_mut(view).snapshot = None);
    browser.until("document.getElementById('trouble').textContent.includes('may be old')");
    assert_eq!(rows(&mut browser).len(), 3);
    node.publish();
    browser.until("document.getElementById('trouble').textContent === ''");
    // The chart grows.
    browser.until("document.querySelector('svg[data-of=pg3] polyline').getAttribute('points').split(' ').length > 1");
    assert!(browser.faults.is_empty(), "{:?}", browser.faults);
}

#[test]
fn buttons_are_for_those_who_have_signed_in() {
    let node = Node::start();
    let mut browser = Browser::open(&node.url());
    browser.until("document.querySelectorAll('#members tr').length === 3");
    let visible = "[...document.querySelectorAll('button')].filter(button => button.offsetParent).map(button => button.textContent)";
    assert_eq!(browser.eval(visible), json!(["Sign in"]));
    let sign_in = |browser: &mut Browser, password: &str| {
        browser.eval("document.getElementById('sign').click()");
        let fill = format!(
            "document.getElementById('user').value = 'ops'; document.getElementById('password').value = '{password}';
             document.querySelector('#d-sign button[value=yes]').click()"
        );
        browser.eval(&fill);
    };
    sign_in(&mut browser, "wrong");
    browser.until(
        "document.getElementById('notice').textContent === 'Not signed in: not authenticated'",
    );
    assert_eq!(browser.eval(visible), json!(["Sign in"]));
    sign_in(&mut browser, "pa:ss");
    browser.until("document.getElementById('notice').textContent === 'Signed in.'");
    assert_eq!(
        browser.eval(visible),
        json!(["Restart", "Restart", "Restart", "Switch over …"])
    );
    // A restart that was called off, then one that was meant, before the browser has told the page that the first dialog was closed.
    browser.eval(
        "document.getElementById('restart-pg3').click(); document.querySelector('#d-act .close').click();
         document.getElementById('restart-pg3').click(); document.getElementById('go').click()",
    );
    browser.until("document.getElementById('notice').textContent === 'Restart of pg3: restarted successfully'");
    node.restarts.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(node.restarts.try_recv().is_err(), "one restart, not two");
    browser.eval(
        "document.getElementById('switchover').click(); document.getElementById('target').value = 'pg2'; document.getElementById('go').click()",
    );
    let written = || {
        let memory = MemoryNode::new(&node.identity);
        node.store
            .with(|state| state.get_raw(&memory, "failover").map(str::to_owned))
    };
    browser
        .until("document.getElementById('notice').textContent.startsWith('Switchover from pg1 ')");
    let end = clock::now() + Duration::from_secs(20);
    while written().is_none() {
        assert!(clock::now() < end, "{}", browser.text());
    }
    assert_eq!(
        written().as_deref(),
        Some(r#"{"leader":"pg1","member":"pg2"}"#)
    );
    node.lead("pg2");
    browser.until("document.getElementById('notice').textContent.endsWith('Successfully switched over to \"pg2\"')");
    assert!(browser.faults.is_empty(), "{:?}", browser.faults);
}

/// The least contrast of any text with what is behind it.
const CONTRAST: &str = r"(() => {
    const parse = text => text.match(/[\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = node => { for (; node; node = node.parentElement) { const c = parse(getComputedStyle(node).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
    let least = 21;
    for (const node of document.querySelectorAll('body *')) {
        if (!node.offsetParent || ![...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim())) continue;
        const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
        least = Math.min(least, (a + 0.05) / (b + 0.05));
    }
    return least;
})()";

#[test]
fn it_fits_phones_and_can_be_read_light_and_dark_and_aloud() {
    let node = Node::start();
    let mut browser = Browser::open(&node.url());
    browser.until("document.querySelectorAll('#members tr').length === 3");
    for (width, height) in [(320, 640), (390, 844), (1280, 800)] {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        browser.call("Emulation.setDeviceMetricsOverride", metrics);
        let wide = browser
            .eval("document.documentElement.scrollWidth")
            .as_u64()
            .unwrap();
        assert!(wide <= width, "{wide} pixels wide on a screen of {width}");
        for scheme in ["light", "dark"] {
            let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
            browser.call("Emulation.setEmulatedMedia", media);
            let contrast = browser.eval(CONTRAST).as_f64().unwrap();
            assert!(contrast >= 4.5, "{scheme}, {width}: contrast {contrast}");
            let page = browser.eval("getComputedStyle(document.body).backgroundColor");
            let is_dark = page == "rgb(18, 22, 28)";
            assert_eq!(is_dark, scheme == "dark", "{page}");
        }
        // What a screen reader is told does not depend on the width.
        let spoken = browser.spoken();
        let has = |role: &str, part: &str| {
            spoken
                .iter()
                .any(|(is, name)| is == role && name.contains(part))
        };
        for (role, part) in [
            ("heading", "demo"),
            ("status", ""),
            ("table", "Members"),
            ("table", "History of the leadership"),
            ("columnheader", "Lag"),
            ("rowheader", "pg2"),
            ("image", "Lag of pg3 in the last 3 minutes: at most 9.5 MB"),
            ("button", "Sign in"),
        ] {
            assert!(has(role, part), "no {role} {part:?} at {width}: {spoken:?}");
        }
    }
    if let Some(path) = std::env::var_os("HOWDAH_SCREENSHOT") {
        browser.call(
            "Emulation.setEmulatedMedia",
            json!({"features": [{"name": "prefers-color-scheme", "value": "light"}]}),
        );
        browser.call(
            "Emulation.setDeviceMetricsOverride",
            json!({"width": 900, "height": 640, "deviceScaleFactor": 1, "mobile": false}),
        );
        let picture = browser.call("Page.captureScreenshot", json!({"format": "png"}));
        use base64::Engine as _;
        let bytes =
            base64::engine::general_purpose::STANDARD.decode(picture["data"].as_str().unwrap());
        std::fs::write(path, bytes.unwrap()).unwrap();
    }
    assert!(browser.faults.is_empty(), "{:?}", browser.faults);
}
