//! A connection to a peer that is kept between requests: for a question that is asked every second, where connecting (and with TLS
//! shaking hands) would cost more than asking.

use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;

use super::{ANSWER_LIMIT, Client, Target, address};

/// Asks one endpoint of one peer again and again.
pub(crate) struct Kept {
    client: Client,
    target: Option<Target>,
    /// Its path.
    endpoint: &'static str,
    sender: Option<SendRequest<Full<Bytes>>>,
    /// The task that drives the connection; it ends with this.
    driver: JoinSet<()>,
}

impl Kept {
    /// Connects with the first question. An `api_url` that is none never answers.
    pub(crate) fn new(client: Client, api_url: &str, endpoint: &'static str) -> Kept {
        Kept {
            client,
            target: Target::parse(api_url),
            endpoint,
            sender: None,
            driver: JoinSet::new(),
        }
    }

    /// Whether the peer answers within `limit`, with whatever status. A kept connection that the peer has closed meanwhile is
    /// replaced. Only an answer keeps it: after silence, or when this is dropped half-way, the next question takes a new one.
    pub(crate) async fn answers(&mut self, limit: Duration) -> bool {
        let asked = tokio::time::timeout(limit, self.ask()).await;
        asked.is_ok_and(|answer| answer.is_ok())
    }

    async fn ask(&mut self) -> Result<(), String> {
        if let Some(sender) = self.sender.take()
            && self.exchange(sender).await.is_ok()
        {
            return Ok(());
        }
        self.driver = JoinSet::new();
        let target = self.target.as_ref().ok_or("not an http(s) URL")?;
        let stream = self.client.connect(target).await?;
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        self.driver.spawn(async move {
            // How it ends shows at the next question.
            let _ = connection.await;
        });
        self.exchange(sender).await
    }

    async fn exchange(&mut self, mut sender: SendRequest<Full<Bytes>>) -> Result<(), String> {
        let target = self.target.as_ref().ok_or("not an http(s) URL")?;
        let mut request = Request::get(self.endpoint)
            .body(Full::default())
            .map_err(|error| error.to_string())?;
        address(target, &mut request)?;
        sender.ready().await.map_err(|error| error.to_string())?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        // To the last byte: only then the connection is free for the next question.
        let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect();
        body.await.map_err(|error| error.to_string())?;
        self.sender = Some(sender);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::peers::ClientSettings;

    /// Answers so many requests on each connection, then closes it; after so many connections it says nothing any more.
    async fn peer(answers: usize, connections: usize) -> (String, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/patroni", listener.local_addr().unwrap());
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        tokio::spawn(async move {
            let mut mute = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                if counted.fetch_add(1, Ordering::SeqCst) >= connections {
                    mute.push(stream);
                    continue;
                }
                for _ in 0..answers {
                    let mut request = [0; 1024];
                    if stream.read(&mut request).await.unwrap_or(0) == 0 {
                        break;
                    }
                    stream
                        .write_all(b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno")
                        .await
                        .unwrap();
                }
            }
        });
        (url, count)
    }

    fn kept(url: &str) -> Kept {
        let client = Client::new(&ClientSettings::default()).unwrap();
        Kept::new(client, url, "/liveness")
    }

    const LIMIT: Duration = Duration::from_millis(800);

    #[tokio::test]
    async fn one_connection_carries_all_questions() {
        let (url, connections) = peer(10, 1).await;
        let mut kept = kept(&url);
        for _ in 0..10 {
            assert!(kept.answers(LIMIT).await);
        }
        assert_eq!(connections.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_connection_that_the_peer_closes_after_each_answer_is_replaced() {
        let (url, connections) = peer(1, 10).await;
        let mut kept = kept(&url);
        for _ in 0..5 {
            assert!(kept.answers(LIMIT).await);
        }
        assert_eq!(connections.load(Ordering::SeqCst), 5);
    }

    #[tokio::test]
    async fn silence_and_nobody_are_no_answers() {
        let (url, _) = peer(1, 1).await;
        let mut one = kept(&url);
        assert!(one.answers(LIMIT).await);
        assert!(!one.answers(Duration::from_millis(100)).await);
        assert!(!kept("http://127.0.0.1:1/patroni").answers(LIMIT).await);
        assert!(!kept("nonsense").answers(LIMIT).await);
    }
}
