//! Clusters of real nodes on loopback, in one process.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::types::MemberName;

/// Nothing here may take longer; what is waited for usually takes a fraction of it.
const LIMIT: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(20);

fn identity(name: &str) -> Identity {
    Identity {
        name: MemberName::new(name).ok(),
        base: "/service/demo".to_owned(),
        group: None,
        ttl: Duration::from_secs(30),
        retry_timeout: Duration::from_secs(5),
    }
}

async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut attempt: impl FnMut() -> F) -> T {
    let deadline = crate::clock::now() + LIMIT;
    loop {
        if let Some(value) = attempt().await {
            return value;
        }
        assert!(crate::clock::now() < deadline, "not in time: {what}");
        tokio::time::sleep(STEP).await;
    }
}

/// Addresses nobody listens on at the moment, below the ports that outgoing connections get.
async fn addresses(count: usize) -> Vec<String> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut free = Vec::new();
    while free.len() < count {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 10_000 + (std::process::id() * 101 + number) % 20_000;
        let address = format!("127.0.0.1:{port}");
        if TcpListener::bind(&address).await.is_ok() {
            free.push(address);
        }
    }
    free
}

/// Nodes that can be stopped, started and cut off from each other.
struct Nodes {
    addresses: Vec<String>,
    disks: Vec<TempDir>,
    running: Vec<Option<RaftNode>>,
    password: Option<Secret>,
    /// Pairs (from, to) that cannot connect.
    cut: Arc<Mutex<HashSet<(String, String)>>>,
}

impl Nodes {
    async fn prepare(count: usize) -> Nodes {
        Nodes {
            addresses: addresses(count).await,
            disks: (0..count).map(|_| tempfile::tempdir().unwrap()).collect(),
            running: (0..count).map(|_| None).collect(),
            password: None,
            cut: Arc::default(),
        }
    }

    async fn start(count: usize) -> Nodes {
        let mut nodes = Nodes::prepare(count).await;
        for index in 0..count {
            nodes.up(index).await;
        }
        nodes
    }

    fn settings(&self, index: usize) -> Settings {
        let mine = self.addresses[index].clone();
        let cut = Arc::clone(&self.cut);
        let from = mine.clone();
        Settings {
            partner_addrs: self.addresses.clone(),
            password: self.password.clone(),
            detour: Some(Arc::new(move |to| {
                if lock(&cut).contains(&(from.clone(), to.to_owned())) {
                    // A port that is never listened on.
                    "127.0.0.1:1".to_owned()
                } else {
                    to.to_owned()
                }
            })),
            ..Settings::new("/service/demo", mine, self.disks[index].path().to_owned())
        }
    }

    async fn up(&mut self, index: usize) {
        let settings = self.settings(index);
        // The node before lets go of its directory and port in its own time.
        let node = until("start", || async {
            RaftNode::start(settings.clone()).await.ok()
        })
        .await;
        self.running[index] = Some(node);
    }

    async fn down(&mut self, index: usize) {
        self.running[index] = None;
        let address = self.addresses[index].clone();
        until("stop", || async {
            TcpStream::connect(&address).await.is_err().then_some(())
        })
        .await;
    }

    fn store(&self, index: usize, name: &str) -> Store {
        self.running[index].as_ref().unwrap().store(&identity(name))
    }

    fn running(&self) -> impl Iterator<Item = (usize, &RaftNode)> {
        let all = self.running.iter().enumerate();
        all.filter_map(|(index, node)| Some((index, node.as_ref()?)))
    }

    /// The node that leads, as a majority of the running ones sees it.
    async fn leader(&self) -> usize {
        until("a Raft leader", || async {
            self.running()
                .find(|(_, node)| node.0.node.leads())
                .map(|(index, _)| index)
        })
        .await
    }
}

async fn put(store: &Store, value: &str) -> Write<Revision> {
    store
        .put(Document::Initialize, value, Expect::Anything)
        .await
}

async fn written(store: &Store, value: &str) {
    until(value, || async {
        matches!(put(store, value).await, Write::Done(_)).then_some(())
    })
    .await;
}

async fn history(store: &Store, value: &str) -> Write<Revision> {
    store.put(Document::Status, value, Expect::Anything).await
}

async fn optime(store: &Store) -> Option<u64> {
    let cluster = store.load(Freshness::Latest).await.ok()?;
    Some(cluster.status.optime.0)
}

#[tokio::test]
async fn a_single_node_works_at_once_and_keeps_everything() {
    let mut nodes = Nodes::start(1).await;
    let a = nodes.store(0, "a");
    assert!(matches!(
        history(&a, r#"{"optime":7}"#).await,
        Write::Done(_)
    ));
    let Write::Done(lease) = a.acquire().await else {
        panic!("not acquired")
    };
    assert!(matches!(a.renew(&lease).await, Write::Done(())));
    drop(a);
    nodes.down(0).await;
    nodes.up(0).await;
    let a = nodes.store(0, "a");
    assert_eq!(optime(&a).await, Some(7));
    let cluster = a.load(Freshness::Recent).await.unwrap();
    let leader = cluster.leader.unwrap();
    // Another process: the old lease is not its own, but the key is.
    assert!(matches!(
        a.renew(&a_lease("nobody")).await,
        Write::Refused(_)
    ));
    assert!(matches!(a.adopt(&leader).await, Write::Done(_)));
}

fn a_lease(session: &str) -> Lease {
    Lease {
        token: LeaseToken {
            session: Some(session.to_owned()),
            revision: None,
        },
    }
}

#[tokio::test]
async fn a_namesake_does_not_share_the_lock() {
    let nodes = Nodes::start(1).await;
    let (first, second) = (nodes.store(0, "a"), nodes.store(0, "a"));
    let Write::Done(lease) = first.acquire().await else {
        panic!("not acquired")
    };
    assert!(matches!(
        second.acquire().await,
        Write::Refused(Refusal::Precondition)
    ));
    let again = first.acquire().await;
    assert!(matches!(again, Write::Done(_)), "{again:?}");
    let leader = second
        .load(Freshness::Latest)
        .await
        .unwrap()
        .leader
        .unwrap();
    let Write::Done(taken) = second.adopt(&leader).await else {
        panic!("not adopted")
    };
    assert!(matches!(first.renew(&lease).await, Write::Refused(_)));
    assert!(matches!(second.renew(&taken).await, Write::Done(())));
}

#[tokio::test]
async fn three_nodes_survive_the_death_of_their_leader() {
    let mut nodes = Nodes::start(3).await;
    written(&nodes.store(0, "a"), "before").await;
    let dead = nodes.leader().await;
    nodes.down(dead).await;
    let begun = crate::clock::now();
    let survivor = (dead + 1) % 3;
    written(&nodes.store(survivor, "b"), "after").await;
    let took = crate::clock::now().since(begun);
    assert!(took < Duration::from_secs(3), "writes stopped for {took:?}");
    nodes.up(dead).await;
    let back = nodes.store(dead, "c");
    assert!(matches!(
        history(&back, r#"{"optime":3}"#).await,
        Write::Done(_)
    ));
    assert_eq!(optime(&nodes.store(survivor, "b")).await, Some(3));
}

#[tokio::test]
async fn all_nodes_restart_and_keep_everything() {
    let mut nodes = Nodes::start(3).await;
    let a = nodes.store(0, "a");
    for turn in 0..20 {
        let text = format!(r#"{{"optime":{turn}}}"#);
        assert!(matches!(history(&a, &text).await, Write::Done(_)));
    }
    drop(a);
    for index in 0..3 {
        nodes.down(index).await;
    }
    for index in 0..3 {
        nodes.up(index).await;
    }
    assert_eq!(optime(&nodes.store(1, "b")).await, Some(19));
}

#[tokio::test]
async fn a_minority_neither_writes_nor_reads() {
    let mut nodes = Nodes::start(3).await;
    written(&nodes.store(0, "a"), "before").await;
    let mut identity = identity("a");
    identity.retry_timeout = Duration::from_secs(2);
    let survivor = nodes.leader().await;
    let store = nodes.running[survivor].as_ref().unwrap().store(&identity);
    nodes.down((survivor + 1) % 3).await;
    nodes.down((survivor + 2) % 3).await;
    let begun = crate::clock::now();
    let outcome = put(&store, "lost").await;
    assert!(matches!(outcome, Write::Unknown(_)), "{outcome:?}");
    assert!(crate::clock::now().since(begun) < Duration::from_secs(3));
    assert!(store.load(Freshness::Latest).await.is_err());
    assert!(
        store.load(Freshness::Recent).await.is_err(),
        "a copy nobody vouches for"
    );
    nodes.up((survivor + 1) % 3).await;
    written(&store, "again").await;
}

#[tokio::test]
async fn a_node_that_lost_its_disk_joins_again_as_another_voter() {
    let mut nodes = Nodes::start(3).await;
    written(&nodes.store(0, "a"), "before").await;
    let lost = nodes.leader().await;
    nodes.down(lost).await;
    nodes.disks[lost] = tempfile::tempdir().unwrap();
    nodes.up(lost).await;
    let joined = nodes.running[lost].as_ref().unwrap().clone();
    until("admission", || async {
        joined.0.node.votes_for(&joined.0.node).then_some(())
    })
    .await;
    let file = read_node(nodes.disks[lost].path());
    assert_eq!(file["founder"], false);
    // It counts: without one of the others there is still a majority.
    nodes.down((lost + 1) % 3).await;
    let store = nodes.store(lost, "c");
    written(&store, "after").await;
    drop((store, joined));
    // And it stays who it is.
    nodes.down(lost).await;
    nodes.up(lost).await;
    assert_eq!(read_node(nodes.disks[lost].path()), file);
    written(&nodes.store(lost, "c"), "at last").await;
}

fn read_node(disk: &Path) -> serde_json::Value {
    let bytes = std::fs::read(disk.join("howdah.raft/node.json")).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[tokio::test]
async fn an_empty_disk_alone_founds_nothing() {
    let mut nodes = Nodes::start(3).await;
    written(&nodes.store(0, "a"), "before").await;
    let (lost, down, kept) = (0, 1, 2);
    for index in [lost, down, kept] {
        nodes.down(index).await;
    }
    nodes.disks[lost] = tempfile::tempdir().unwrap();
    nodes.up(lost).await;
    nodes.up(kept).await;
    // Two of three are up, but one of them has forgotten its votes: no majority of the old voters, no cluster.
    let mut identity = identity("a");
    identity.retry_timeout = Duration::from_secs(3);
    for index in [lost, kept] {
        let store = nodes.running[index].as_ref().unwrap().store(&identity);
        let outcome = put(&store, "lost").await;
        assert!(matches!(outcome, Write::Unknown(_)), "{outcome:?}");
    }
    nodes.up(down).await;
    written(&nodes.store(lost, "a"), "after").await;
}

#[tokio::test]
async fn a_new_node_joins_a_single_one() {
    let mut nodes = Nodes::prepare(2).await;
    let alone = Settings {
        partner_addrs: Vec::new(),
        ..nodes.settings(0)
    };
    nodes.running[0] = Some(RaftNode::start(alone).await.unwrap());
    written(&nodes.store(0, "a"), "before").await;
    nodes.up(1).await;
    let joined = nodes.running[1].as_ref().unwrap();
    until("admission", || async {
        joined.0.node.votes_for(&joined.0.node).then_some(())
    })
    .await;
    written(&nodes.store(1, "b"), "after").await;
    // Both are needed now.
    nodes.down(1).await;
    let mut identity = identity("a");
    identity.retry_timeout = Duration::from_secs(2);
    let store = nodes.running[0].as_ref().unwrap().store(&identity);
    assert!(matches!(put(&store, "lost").await, Write::Unknown(_)));
}

#[tokio::test]
async fn a_node_that_moves_is_found_again() {
    let mut nodes = Nodes::start(3).await;
    written(&nodes.store(0, "a"), "before").await;
    nodes.down(2).await;
    nodes.addresses[2] = addresses(1).await.remove(0);
    nodes.up(2).await;
    let moved = nodes.running[2].as_ref().unwrap();
    until("the new address", || async {
        moved.0.node.votes_for(&moved.0.node).then_some(())
    })
    .await;
    nodes.down(1).await;
    written(&nodes.store(2, "c"), "after").await;
}

#[tokio::test]
async fn a_wrong_secret_keeps_a_node_out() {
    let mut nodes = Nodes::prepare(3).await;
    nodes.password = Some(Secret::new("right"));
    nodes.up(0).await;
    nodes.up(1).await;
    nodes.up(2).await;
    written(&nodes.store(0, "a"), "before").await;
    nodes.down(2).await;
    nodes.password = Some(Secret::new("wrong"));
    nodes.up(2).await;
    let mut identity = identity("c");
    identity.retry_timeout = Duration::from_secs(1);
    let stranger = nodes.running[2].as_ref().unwrap().store(&identity);
    assert!(matches!(put(&stranger, "wrong").await, Write::Unknown(_)));
    let ctl = |password: &str| {
        let password = Some(Secret::new(password));
        client(vec![nodes.addresses[0].clone()], password, &identity)
    };
    let error = ctl("wrong").load(Freshness::Latest).await.unwrap_err();
    assert!(error.to_string().contains("secret"), "{error}");
    assert!(ctl("right").load(Freshness::Latest).await.is_ok());
    written(&nodes.store(0, "a"), "after").await;
}

#[tokio::test]
async fn different_lists_of_nodes_form_nothing() {
    let nodes = Nodes::prepare(2).await;
    let mut other = nodes.settings(1);
    other.partner_addrs.push("127.0.0.1:1".to_owned());
    let _first = RaftNode::start(nodes.settings(0)).await.unwrap();
    let second = RaftNode::start(other).await.unwrap();
    let mut identity = identity("a");
    identity.retry_timeout = Duration::from_secs(2);
    let outcome = put(&second.store(&identity), "1").await;
    assert!(matches!(outcome, Write::Unknown(_)), "{outcome:?}");
}

#[tokio::test]
async fn a_follower_cut_off_for_long_gets_the_snapshot() {
    let mut nodes = Nodes::start(3).await;
    written(&nodes.store(0, "a"), "before").await;
    let leader = nodes.leader().await;
    let away = (leader + 1) % 3;
    nodes.down(away).await;
    let store = nodes.store(leader, "a");
    for turn in 0..1500 {
        let text = format!(r#"{{"optime":{turn}}}"#);
        assert!(matches!(history(&store, &text).await, Write::Done(_)));
    }
    let log = nodes.disks[leader].path().join("howdah.raft/log");
    let size = std::fs::metadata(log).unwrap().len();
    assert!(size < 600_000, "the log has {size} bytes");
    nodes.up(away).await;
    let back = nodes.store(away, "b");
    until("the snapshot", || async {
        (optime(&back).await == Some(1499)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn keys_expire_in_time_and_not_early() {
    let nodes = Nodes::start(1).await;
    let mut identity = identity("a");
    identity.ttl = Duration::from_secs(1);
    let store = nodes.running[0].as_ref().unwrap().store(&identity);
    let mut changes = store.changes();
    let sent = crate::clock::now();
    assert!(matches!(store.put_member("{}").await, Write::Done(())));
    until("expiry", || async {
        let cluster = store.load(Freshness::Latest).await.unwrap();
        cluster.members.is_empty().then_some(())
    })
    .await;
    let lived = crate::clock::now().since(sent);
    assert!(lived >= identity.ttl, "gone after {lived:?}");
    assert!(lived < identity.ttl * 2, "gone after {lived:?}");
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
}

#[tokio::test]
async fn a_change_of_the_raft_leader_in_the_middle_of_a_ttl_does_not_prolong_it() {
    let mut nodes = Nodes::start(3).await;
    written(&nodes.store(0, "x"), "before").await;
    let leader = nodes.leader().await;
    let mut identity = identity("a");
    identity.ttl = Duration::from_secs(4);
    let store = nodes.running[leader].as_ref().unwrap().store(&identity);
    let Write::Done(lease) = store.acquire().await else {
        panic!("not acquired")
    };
    // Not the creation's time counts.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let sent = crate::clock::now();
    assert!(matches!(store.renew(&lease).await, Write::Done(())));
    drop(store);
    nodes.running[leader] = None;
    let killed = crate::clock::now();
    let survivor = nodes.store((leader + 1) % 3, "b");
    let gone = until("expiry", || async {
        let asked = crate::clock::now();
        let cluster = survivor.load(Freshness::Latest).await.ok()?;
        cluster.leader.is_none().then_some(asked)
    })
    .await;
    let seen = crate::clock::now();
    assert!(seen.since(sent) >= identity.ttl, "gone too early");
    // An election takes 0.9 s at the least: with the time begun anew by the next Raft leader it would be more.
    let late = gone.since(killed);
    assert!(
        late < identity.ttl + Duration::from_millis(700),
        "gone {late:?} after the kill"
    );
}

#[tokio::test]
async fn a_leader_that_stops_hands_over_without_an_outage() {
    let mut nodes = Nodes::start(3).await;
    written(&nodes.store(0, "x"), "before").await;
    let leader = nodes.leader().await;
    let survivor = nodes.store((leader + 1) % 3, "b");
    let leaving = nodes.store(leader, "a");
    // A leader grants nobody a vote right after it has been elected itself.
    tokio::time::sleep(Duration::from_millis(800)).await;
    let begun = crate::clock::now();
    leaving.leave().await;
    // What an election of its own accord takes at the least, whatever the load: the others wait that long for the leader.
    let took = crate::clock::now().since(begun);
    assert!(took < Duration::from_millis(600), "left after {took:?}");
    assert!(!nodes.running[leader].as_ref().unwrap().0.node.leads());
    drop(leaving);
    nodes.running[leader] = None;
    written(&survivor, "after").await;
    let took = crate::clock::now().since(begun);
    assert!(took < Duration::from_millis(900), "outage of {took:?}");
}

#[tokio::test]
async fn leaving_is_quick_for_who_does_not_lead_or_is_alone() {
    let nodes = Nodes::start(1).await;
    let alone = nodes.store(0, "a");
    written(&alone, "before").await;
    tokio::time::timeout(Duration::from_millis(500), alone.leave())
        .await
        .unwrap();
    written(&alone, "after").await;
}

#[tokio::test]
async fn silent_connections_keep_nobody_out() {
    let nodes = Nodes::start(1).await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(&nodes.addresses[0]).await.unwrap());
    }
    let ctl = client(nodes.addresses.clone(), None, &identity(""));
    assert!(ctl.load(Freshness::Latest).await.is_ok());
}

#[tokio::test]
async fn a_large_document_is_refused_and_a_big_one_travels() {
    let nodes = Nodes::start(3).await;
    let store = nodes.store(0, "a");
    let text = |size: usize| format!(r#"{{"x":"{}"}}"#, "\"".repeat(0) + &"y".repeat(size));
    let outcome = history(&store, &text(LARGEST_VALUE)).await;
    assert!(
        matches!(outcome, Write::Refused(Refusal::Rejected(_))),
        "{outcome:?}"
    );
    assert!(matches!(
        history(&store, &text(900_000)).await,
        Write::Done(_)
    ));
}

#[tokio::test]
async fn an_old_disk_that_was_replaced_comes_back() {
    let mut nodes = Nodes::start(3).await;
    written(&nodes.store(0, "a"), "before").await;
    nodes.down(2).await;
    let old = std::mem::replace(&mut nodes.disks[2], tempfile::tempdir().unwrap());
    nodes.up(2).await;
    let second = nodes.running[2].as_ref().unwrap().clone();
    until("admission of the new disk", || async {
        second.0.node.votes_for(&second.0.node).then_some(())
    })
    .await;
    drop(second);
    nodes.down(2).await;
    nodes.disks[2] = old;
    nodes.up(2).await;
    until("admission of the old disk", || async {
        let node = |index: usize| &nodes.running[index].as_ref().unwrap().0.node;
        (node(2).votes_for(node(0)) && node(2).votes_for(node(1))).then_some(())
    })
    .await;
    nodes.down(1).await;
    written(&nodes.store(2, "c"), "with two").await;
}

#[tokio::test]
async fn a_disk_that_fails_for_a_while_is_used_again() {
    let nodes = Nodes::start(1).await;
    let mut identity = identity("a");
    identity.retry_timeout = Duration::from_secs(2);
    let store = nodes.running[0].as_ref().unwrap().store(&identity);
    written(&store, "before").await;
    // The log is rewritten after some time; a directory in the place of the new file makes that fail.
    let obstacle = nodes.disks[0].path().join("howdah.raft/log.new");
    std::fs::create_dir(&obstacle).unwrap();
    let mut turn = 0;
    until("the failure", || {
        turn += 1;
        let (store, text) = (&store, format!(r#"{{"optime":{turn}}}"#));
        async move {
            for _ in 0..100 {
                if !matches!(history(store, &text).await, Write::Done(_)) {
                    return Some(());
                }
            }
            None
        }
    })
    .await;
    assert!(store.load(Freshness::Recent).await.is_err());
    std::fs::remove_dir(&obstacle).unwrap();
    written(&store, "after").await;
}

#[tokio::test]
async fn a_witness_votes() {
    let mut nodes = Nodes::prepare(3).await;
    let settings = Settings {
        cluster: String::new(),
        ..nodes.settings(2)
    };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let task = tokio::spawn(witness(settings, async {
        let _ = stopped.await;
    }));
    nodes.up(0).await;
    nodes.up(1).await;
    written(&nodes.store(0, "a"), "before").await;
    nodes.down(0).await;
    written(&nodes.store(1, "b"), "after").await;
    stop.send(()).unwrap();
    task.await.unwrap().unwrap();
    let mut identity = identity("b");
    identity.retry_timeout = Duration::from_secs(2);
    let store = nodes.running[1].as_ref().unwrap().store(&identity);
    assert!(matches!(put(&store, "lost").await, Write::Unknown(_)));
}
