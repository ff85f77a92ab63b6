//! The reference store, on virtual time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use howdah::dcs::memory::{Fault, MemoryDcs, MemoryNode, MemoryStore};
use howdah::dcs::{Identity, Store};
use howdah::types::{MemberName, Moment};

use crate::harness::{Backend, Cut, Harness};

pub(crate) struct Memory;

#[async_trait(?Send)]
impl Backend for Memory {
    async fn harness(&self, _case: &str) -> anyhow::Result<Box<dyn Harness>> {
        let millis = Arc::new(AtomicU64::new(1_000));
        let clock = Arc::clone(&millis);
        let now = move || Moment(Duration::from_millis(clock.load(Ordering::Relaxed)));
        Ok(Box::new(MemoryHarness {
            store: MemoryStore::new(now),
            millis,
            handles: Mutex::default(),
        }))
    }
}

struct MemoryHarness {
    store: MemoryStore,
    millis: Arc<AtomicU64>,
    handles: Mutex<BTreeMap<String, Vec<Arc<MemoryDcs>>>>,
}

impl MemoryHarness {
    fn identity(&self, name: &str) -> Identity {
        Identity {
            name: MemberName::new(name).ok(),
            base: "/service/demo".to_owned(),
            group: None,
            ttl: self.ttl(),
            retry_timeout: self.retry_timeout(),
        }
    }

    fn fault(&self, name: &str, fault: Fault) {
        for handle in self.handles.lock().unwrap().get(name).into_iter().flatten() {
            handle.set_fault(fault);
        }
    }
}

#[async_trait(?Send)]
impl Harness for MemoryHarness {
    fn ttl(&self) -> Duration {
        Duration::from_secs(30)
    }

    fn retry_timeout(&self) -> Duration {
        Duration::from_secs(10)
    }

    async fn open(&self, name: &str) -> Store {
        let handle = self.store.handle(&self.identity(name));
        let mut handles = self.handles.lock().unwrap();
        handles
            .entry(name.to_owned())
            .or_default()
            .push(Arc::clone(&handle));
        handle
    }

    async fn elapse(&self, by: Duration) {
        let by = u64::try_from(by.as_millis()).unwrap();
        self.millis.fetch_add(by, Ordering::Relaxed);
        self.store.tick();
        tokio::task::yield_now().await;
    }

    async fn cut(&self, name: &str, how: Cut) {
        let fault = match how {
            Cut::Refused | Cut::Silent => Fault::Unreachable,
            Cut::AnswersLost => Fault::AnswersLost,
        };
        self.fault(name, fault);
    }

    async fn mend(&self, name: &str) {
        self.fault(name, Fault::None);
    }

    async fn kill_session(&self, session: &str) {
        self.store.with(|state| state.kill_session(session));
    }

    async fn put_raw(&self, relative: &str, value: &str) {
        let node = MemoryNode::new(&self.identity(""));
        self.store
            .with(|state| state.put_raw(&node, relative, value));
    }
}
