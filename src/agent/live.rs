//! Answers peers with the status of this moment, beside the loop: in an election both sides ask each other while their loops wait.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::node::{LiveStatus, PostgresStatus};
use crate::postgres::Settings;
use crate::postgres::observe::{Observer, Wants};

/// An unused connection is closed after this time.
const IDLE: Duration = Duration::from_secs(10);
/// One query answers all who asked before it began.
const WAITING: usize = 64;
/// How long one query may take.
const LIMIT: Duration = Duration::from_secs(1);

/// Starts the task; it ends with the last copy of the handle.
pub(super) fn start(settings: watch::Receiver<Settings>) -> LiveStatus {
    let (sender, requests) = mpsc::channel(WAITING);
    tokio::task::spawn_local(serve(settings, requests));
    LiveStatus(sender)
}

async fn serve(
    mut settings: watch::Receiver<Settings>,
    mut requests: mpsc::Receiver<oneshot::Sender<Option<PostgresStatus>>>,
) {
    let mut observer = Observer::new();
    loop {
        let first = match tokio::time::timeout(IDLE, requests.recv()).await {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(_) => {
                observer.forget();
                match requests.recv().await {
                    Some(request) => request,
                    None => return,
                }
            }
        };
        let mut waiting = vec![first];
        while let Ok(request) = requests.try_recv() {
            waiting.push(request);
        }
        if settings.has_changed().unwrap_or(false) {
            observer.forget();
        }
        let now = settings.borrow_and_update().clone();
        let query = observer.observe(&now, Wants::default());
        let status = match tokio::time::timeout(LIMIT, query).await {
            Ok(Ok(sample)) => Some(sample.status()),
            Ok(Err(error)) => {
                tracing::debug!("no status for a peer: {error}");
                None
            }
            Err(_) => None,
        };
        if status.is_none() {
            observer.forget();
        }
        for request in waiting {
            // Whoever asked may have given up.
            let _gone = request.send(status.clone());
        }
    }
}
