//! `howdah healthcheck`: one GET to the local REST API, for the image's HEALTHCHECK. No runtime, no store, no PostgreSQL.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use crate::api::Settings;
use crate::peers::{ClientSettings, tls};

/// Time for connecting, and for each read and write.
const PATIENCE: Duration = Duration::from_secs(3);

/// GETs `/<endpoint>` (`liveness` unless there is a reason) from the listener of these settings.
///
/// # Errors
/// Why the node does not count as healthy, for people; exit with 1.
pub fn run(settings: &Settings, endpoint: &str) -> Result<(), String> {
    let (host, port) = local_address(&settings.listen)
        .ok_or_else(|| format!("{:?} is not host:port (restapi.listen)", settings.listen))?;
    let context = |error: std::io::Error| format!("REST API on {host}:{port}: {error}");
    let addresses = (host.as_str(), port).to_socket_addrs().map_err(context)?;
    let mut failure = format!("{host} has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => {
                return ask(stream, settings, endpoint)
                    .map_err(context)
                    .and_then(judge);
            }
            Err(error) => failure = context(error),
        }
    }
    Err(failure)
}

/// The listener's own address, or loopback when it listens everywhere.
fn local_address(listen: &str) -> Option<(String, u16)> {
    let (host, port) = listen.rsplit_once(':')?;
    let host = match host.trim_start_matches('[').trim_end_matches(']') {
        "" | "*" | "0.0.0.0" => "127.0.0.1",
        "::" => "::1",
        host => host,
    };
    Some((host.to_owned(), port.parse().ok()?))
}

fn ask(stream: TcpStream, settings: &Settings, endpoint: &str) -> std::io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = format!("GET /{endpoint} HTTP/1.0\r\nConnection: close\r\n\r\n");
    if settings.tls.is_none() {
        return exchange(stream, &request);
    }
    // Our own certificate need not name the loopback address.
    let client = ClientSettings {
        verify: crate::peers::Verify::Nothing,
        ..settings.client.clone()
    };
    let config = tls::client_config(&client).map_err(std::io::Error::other)?;
    let name =
        rustls::pki_types::ServerName::try_from("localhost").map_err(std::io::Error::other)?;
    let connection =
        rustls::ClientConnection::new(Arc::new(config), name).map_err(std::io::Error::other)?;
    exchange(rustls::StreamOwned::new(connection, stream), &request)
}

/// The status line.
fn exchange(mut stream: impl Read + Write, request: &str) -> std::io::Result<String> {
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut part = [0; 512];
    while !answer.contains(&b'\n') && answer.len() < 4096 {
        match stream.read(&mut part)? {
            0 => break,
            length => answer.extend_from_slice(&part[..length]),
        }
    }
    let text = String::from_utf8_lossy(&answer);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn judge(status_line: String) -> Result<(), String> {
    match status_line.split(' ').nth(1) {
        Some("200") => Ok(()),
        _ => Err(format!("REST API answered {status_line:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(
            local_address("*:8008"),
            Some(("127.0.0.1".to_owned(), 8008))
        );
        assert_eq!(local_address("[::]:8008"), Some(("::1".to_owned(), 8008)));
        assert_eq!(
            local_address("10.0.0.1:80"),
            Some(("10.0.0.1".to_owned(), 80))
        );
        assert_eq!(local_address("nonsense"), None);
    }

    #[test]
    fn an_answer_is_judged_by_its_status() {
        for (answer, healthy) in [
            ("HTTP/1.0 200 OK\r\n\r\n", true),
            ("HTTP/1.0 503 Service Unavailable\r\n\r\n", false),
            ("", false),
        ] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let settings = Settings {
                listen: listener.local_addr().unwrap().to_string(),
                ..Settings::default()
            };
            let server = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 256];
                let length = stream.read(&mut request).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
                String::from_utf8_lossy(&request[..length]).into_owned()
            });
            assert_eq!(run(&settings, "liveness").is_ok(), healthy, "{answer:?}");
            assert!(
                server
                    .join()
                    .unwrap()
                    .starts_with("GET /liveness HTTP/1.0\r\n")
            );
        }
    }

    #[test]
    fn nobody_listens() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let settings = Settings {
            listen: listener.local_addr().unwrap().to_string(),
            ..Settings::default()
        };
        drop(listener);
        assert!(run(&settings, "liveness").is_err());
    }
}
