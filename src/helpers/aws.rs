//! `patroni_aws {on_start|on_stop|on_role_change} ROLE CLUSTER`: tags the EC2 instance it runs on, and its volumes, with the role.
//!
//! Who the instance is comes from its metadata service (version 2, with a session token); the tags go to EC2's query API in requests
//! signed with signature version 4. Credentials: the usual variables, else those of the instance's role.

use std::collections::BTreeMap;
use std::time::Duration;

use hmac::{Hmac, Mac as _};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Method, Request};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::clock;
use crate::peers::{Client, ClientSettings, Verify};

use super::Say;

/// How long EC2's API is tried.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);
/// Time for one answer.
const ANSWER: Duration = Duration::from_secs(10);
const METADATA: &str = "http://169.254.169.254";
const API_VERSION: &str = "2016-11-15";
const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";

type Variables = BTreeMap<String, String>;

/// Wrong arguments end with 1; otherwise 0, also when nothing could be tagged: a tag is not worth a failed callback.
pub(super) async fn run(
    arguments: &[String],
    variables: &Variables,
    say: &mut Say<'_>,
    patience: Duration,
) -> u8 {
    let [action, role, cluster] = arguments else {
        say("Usage: patroni_aws {on_start|on_stop|on_role_change} ROLE CLUSTER");
        return 1;
    };
    if !matches!(action.as_str(), "on_start" | "on_stop" | "on_role_change") {
        say("Usage: patroni_aws {on_start|on_stop|on_role_change} ROLE CLUSTER");
        return 1;
    }
    let settings = ClientSettings {
        cacert: variables.get("AWS_CA_BUNDLE").cloned(),
        verify: Verify::Full,
        ..ClientSettings::default()
    };
    let client = match Client::new(&settings) {
        Ok(client) => client,
        Err(error) => {
            say(&format!("AWS_CA_BUNDLE can not be used: {error}"));
            return 0;
        }
    };
    let host = match Instance::ask(&client, variables).await {
        Ok(instance) => instance,
        Err(why) => {
            say(&format!(
                "this is no EC2 instance, or its metadata can not be read; nothing is tagged: {why}"
            ));
            return 0;
        }
    };
    let begin = clock::now();
    let mut pause = Duration::from_secs(1);
    loop {
        match tag(&client, variables, &host, role, cluster).await {
            Ok(volumes) => {
                say(&format!(
                    "tagged {} and {volumes} volumes with the role {role}",
                    host.id
                ));
                return 0;
            }
            Err(why) if clock::now().since(begin) + pause < patience => {
                say(&format!("{why}; trying again"));
            }
            Err(why) => {
                say(&format!("nothing more is tagged: {why}"));
                return 0;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(30));
    }
}

/// The instance, its volumes; how many those were.
async fn tag(
    client: &Client,
    variables: &Variables,
    host: &Instance,
    role: &str,
    cluster: &str,
) -> Result<usize, String> {
    let keys = host.keys(client, variables).await?;
    let api = Api {
        client,
        endpoint: ["AWS_ENDPOINT_URL_EC2", "AWS_ENDPOINT_URL"]
            .iter()
            .find_map(|name| variables.get(*name).cloned())
            .unwrap_or_else(|| host.endpoint()),
        region: &host.region,
        keys: &keys,
    };
    let tags = |tags: &[(&str, &str)]| {
        let numbered = tags.iter().enumerate().flat_map(|(at, (key, value))| {
            [
                (format!("Tag.{}.Key", at + 1), (*key).to_owned()),
                (format!("Tag.{}.Value", at + 1), (*value).to_owned()),
            ]
        });
        numbered.collect::<Vec<_>>()
    };
    let mut form = vec![("ResourceId.1".to_owned(), host.id.clone())];
    form.extend(tags(&[("Role", role)]));
    api.call("CreateTags", form).await?;
    let filter = vec![
        (
            "Filter.1.Name".to_owned(),
            "attachment.instance-id".to_owned(),
        ),
        ("Filter.1.Value.1".to_owned(), host.id.clone()),
    ];
    let volumes = volumes(&api.call("DescribeVolumes", filter).await?);
    if !volumes.is_empty() {
        let mut form: Vec<(String, String)> = volumes
            .iter()
            .enumerate()
            .map(|(at, volume)| (format!("ResourceId.{}", at + 1), volume.clone()))
            .collect();
        form.extend(tags(&[
            ("Name", &format!("spilo_{cluster}")),
            ("Role", role),
            ("Instance", &host.id),
        ]));
        api.call("CreateTags", form).await?;
    }
    Ok(volumes.len())
}

/// Each volume once, though the answer names it again in its attachment.
fn volumes(answer: &str) -> Vec<String> {
    let mut found: Vec<String> = answer
        .split("<volumeId>")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once("</volumeId>")?.0.to_owned()))
        .collect();
    found.sort();
    found.dedup();
    found
}

/// What the metadata service says of this machine.
struct Instance {
    id: String,
    region: String,
    metadata: String,
    token: String,
}

impl Instance {
    async fn ask(client: &Client, variables: &Variables) -> Result<Instance, String> {
        let metadata = variables
            .get("AWS_EC2_METADATA_SERVICE_ENDPOINT")
            .map_or(METADATA, String::as_str)
            .trim_end_matches('/')
            .to_owned();
        let request = Request::builder()
            .method(Method::PUT)
            .uri("/latest/api/token")
            .header("x-aws-ec2-metadata-token-ttl-seconds", "21600")
            .body(Full::default())
            .map_err(|error| error.to_string())?;
        let token = answer(client, &metadata, request).await?;
        let mut instance = Instance {
            id: String::new(),
            region: String::new(),
            metadata,
            token,
        };
        let document = instance
            .look_up(client, "/latest/dynamic/instance-identity/document")
            .await?;
        let document: Value = serde_json::from_str(&document).map_err(|error| error.to_string())?;
        let text = |key: &str| {
            let value = document.get(key).and_then(Value::as_str);
            value
                .map(str::to_owned)
                .ok_or_else(|| format!("the instance's identity has no {key}"))
        };
        instance.id = text("instanceId")?;
        instance.region = text("region")?;
        Ok(instance)
    }

    async fn look_up(&self, client: &Client, path: &str) -> Result<String, String> {
        let request = Request::builder()
            .uri(path)
            .header("x-aws-ec2-metadata-token", &self.token)
            .body(Full::default())
            .map_err(|error| error.to_string())?;
        answer(client, &self.metadata, request).await
    }

    fn endpoint(&self) -> String {
        let country = if self.region.starts_with("cn-") {
            ".cn"
        } else {
            ""
        };
        format!("https://ec2.{}.amazonaws.com{country}", self.region)
    }

    /// Those of the environment, else those of the instance's role.
    async fn keys(&self, client: &Client, variables: &Variables) -> Result<Keys, String> {
        let named = |name: &str| {
            variables
                .get(name)
                .filter(|value| !value.is_empty())
                .cloned()
        };
        if let (Some(id), Some(secret)) =
            (named("AWS_ACCESS_KEY_ID"), named("AWS_SECRET_ACCESS_KEY"))
        {
            let token = named("AWS_SESSION_TOKEN");
            return Ok(Keys { id, secret, token });
        }
        let folder = "/latest/meta-data/iam/security-credentials/";
        let role = self.look_up(client, folder).await?;
        let role = role.lines().next().unwrap_or_default().trim();
        let keys = self.look_up(client, &format!("{folder}{role}")).await?;
        let keys: Value = serde_json::from_str(&keys).map_err(|error| error.to_string())?;
        let text = |key: &str| keys.get(key).and_then(Value::as_str).map(str::to_owned);
        match (text("AccessKeyId"), text("SecretAccessKey")) {
            (Some(id), Some(secret)) => Ok(Keys {
                id,
                secret,
                token: text("Token"),
            }),
            _ => Err(format!(
                "the role {role} of this instance has no credentials"
            )),
        }
    }
}

/// The body of a 200.
async fn answer(
    client: &Client,
    url: &str,
    request: Request<Full<Bytes>>,
) -> Result<String, String> {
    let path = request.uri().path().to_owned();
    let answer = client
        .request(url, request, ANSWER)
        .await
        .map_err(|error| error.to_string())?;
    if answer.status == 200 {
        Ok(answer.body)
    } else {
        let body: String = answer.body.chars().take(300).collect();
        Err(format!("{path}: status {}, {body}", answer.status))
    }
}

struct Keys {
    id: String,
    secret: String,
    token: Option<String>,
}

struct Api<'a> {
    client: &'a Client,
    endpoint: String,
    region: &'a str,
    keys: &'a Keys,
}

impl Api<'_> {
    async fn call(&self, action: &str, fields: Vec<(String, String)>) -> Result<String, String> {
        let mut form = format!("Action={action}&Version={API_VERSION}");
        for (name, value) in fields {
            form.push_str(&format!("&{name}={}", percent_encoded(&value)));
        }
        let at = chrono::DateTime::from_timestamp_millis(clock::wall().0).unwrap_or_default();
        let at = at.format("%Y%m%dT%H%M%SZ").to_string();
        let authority = self.endpoint.split("://").nth(1).unwrap_or_default();
        let host = authority.split('/').next().unwrap_or_default();
        let signed = Signed {
            content_type: FORM,
            host,
            at: &at,
            region: self.region,
            service: "ec2",
            body: &form,
        };
        let mut request = Request::builder()
            .method(Method::POST)
            .uri("/")
            .header("content-type", FORM)
            .header("x-amz-date", &at)
            .header("authorization", signed.authorization(self.keys));
        if let Some(token) = &self.keys.token {
            request = request.header("x-amz-security-token", token);
        }
        let request = request
            .body(Full::new(Bytes::from(form)))
            .map_err(|error| error.to_string())?;
        answer(self.client, &self.endpoint, request)
            .await
            .map_err(|why| format!("{action}: {why}"))
    }
}

fn percent_encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// What signature version 4 covers of a POST to `/` without a query.
struct Signed<'a> {
    content_type: &'a str,
    host: &'a str,
    /// `YYYYMMDDTHHMMSSZ`.
    at: &'a str,
    region: &'a str,
    service: &'a str,
    body: &'a str,
}

impl Signed<'_> {
    fn authorization(&self, keys: &Keys) -> String {
        let mut headers = vec![
            ("content-type", self.content_type),
            ("host", self.host),
            ("x-amz-date", self.at),
        ];
        headers.extend(
            keys.token
                .as_deref()
                .map(|token| ("x-amz-security-token", token)),
        );
        let lines: String = headers
            .iter()
            .map(|(name, value)| format!("{name}:{value}\n"))
            .collect();
        let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let request = format!(
            "POST\n/\n\n{lines}\n{names}\n{}",
            hex(&Sha256::digest(self.body))
        );
        let day = self.at.split('T').next().unwrap_or_default();
        let scope = format!("{day}/{}/{}/aws4_request", self.region, self.service);
        let text = format!(
            "AWS4-HMAC-SHA256\n{}\n{scope}\n{}",
            self.at,
            hex(&Sha256::digest(&request))
        );
        let secret = format!("AWS4{}", keys.secret);
        let parts = [day, self.region, self.service, "aws4_request", &text];
        let signature = parts
            .iter()
            .fold(secret.into_bytes(), |key, part| mac(&key, part));
        format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={}",
            keys.id,
            hex(&signature)
        )
    }
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    match Hmac::<Sha256>::new_from_slice(key) {
        Ok(mut mac) => {
            mac.update(text.as_bytes());
            mac.finalize().into_bytes().to_vec()
        }
        // Keys of any length are taken.
        Err(_) => Vec::new(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::super::tests::words;
    use super::*;

    /// From the test suite that AWS publishes for signature version 4 (post-x-www-form-urlencoded).
    #[test]
    fn signatures_are_those_of_the_published_samples() {
        let signed = Signed {
            content_type: "application/x-www-form-urlencoded",
            host: "example.amazonaws.com",
            at: "20150830T123600Z",
            region: "us-east-1",
            service: "service",
            body: "Param1=value1",
        };
        let keys = Keys {
            id: "AKIDEXAMPLE".into(),
            secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into(),
            token: None,
        };
        assert_eq!(
            signed.authorization(&keys),
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date, \
             Signature=ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a"
        );
    }

    /// Plays the metadata service and EC2 at once, and keeps what it was asked. The first `faults` calls of the API fail.
    async fn stand_in(faults: usize) -> (String, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let kept = asked.clone();
        tokio::spawn(async move {
            let mut faults = faults;
            while let Ok((mut stream, _)) = listener.accept().await {
                let request = read(&mut stream).await;
                let line = request.lines().next().unwrap_or_default().to_owned();
                let has = |text: &str| request.to_lowercase().contains(&text.to_lowercase());
                let with_token = has("x-aws-ec2-metadata-token: token-1");
                let (status, body) = match line.as_str() {
                    "PUT /latest/api/token HTTP/1.1" if has("token-ttl-seconds: 21600") => {
                        (200, "token-1")
                    }
                    "GET /latest/dynamic/instance-identity/document HTTP/1.1" if with_token => {
                        (200, r#"{"instanceId": "i-1", "region": "eu-west-1"}"#)
                    }
                    "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1" if with_token => {
                        (200, "db-role")
                    }
                    "GET /latest/meta-data/iam/security-credentials/db-role HTTP/1.1"
                        if with_token =>
                    {
                        (
                            200,
                            r#"{"AccessKeyId": "AKID", "SecretAccessKey": "secret", "Token": "session"}"#,
                        )
                    }
                    "POST / HTTP/1.1" if faults > 0 => {
                        faults -= 1;
                        (503, "later")
                    }
                    "POST / HTTP/1.1"
                        if has("authorization: AWS4-HMAC-SHA256 Credential=AKID/")
                            && has("/eu-west-1/ec2/aws4_request")
                            && has(
                                "SignedHeaders=content-type;host;x-amz-date;x-amz-security-token",
                            )
                            && has("x-amz-security-token: session") =>
                    {
                        (
                            200,
                            "<item><volumeId>vol-1</volumeId><attachmentSet><item><volumeId>vol-1</volumeId></item></attachmentSet></item>\
                             <item><volumeId>vol-2</volumeId></item>",
                        )
                    }
                    _ => (403, "no"),
                };
                if status == 200 && line.starts_with("POST") {
                    let form = request.split("\r\n\r\n").nth(1).unwrap_or_default();
                    kept.lock().unwrap().push(form.to_owned());
                }
                let answer = format!(
                    "HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (url, asked)
    }

    /// A request with its body.
    async fn read(stream: &mut tokio::net::TcpStream) -> String {
        let mut request = String::new();
        loop {
            if let Some((head, body)) = request.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|line| {
                    let (name, value) = line.split_once(": ")?;
                    name.eq_ignore_ascii_case("content-length")
                        .then(|| value.parse().unwrap())
                });
                if body.len() >= length.unwrap_or(0) {
                    return request;
                }
            }
            let mut buffer = [0; 4096];
            match stream.read(&mut buffer).await {
                Ok(count) if count > 0 => {
                    request.push_str(&String::from_utf8_lossy(&buffer[..count]));
                }
                _ => return request,
            }
        }
    }

    async fn ran(line: &str, url: &str, patience: Duration) -> (u8, String) {
        let variables = [
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", url),
            ("AWS_ENDPOINT_URL", url),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut said = String::new();
        let mut say = |line: &str| said.push_str(&format!("{line}\n"));
        let code = run(&words(line), &variables.into(), &mut say, patience).await;
        (code, said)
    }

    #[tokio::test]
    async fn the_instance_and_its_volumes_are_tagged_though_the_api_fails_at_first() {
        let (url, asked) = stand_in(1).await;
        let (code, said) = ran("on_role_change primary my/cluster", &url, PATIENCE).await;
        assert_eq!(code, 0, "{said}");
        assert!(
            said.contains("CreateTags: /: status 503")
                && said.ends_with("tagged i-1 and 2 volumes with the role primary\n"),
            "{said}"
        );
        let version = "Version=2016-11-15";
        assert_eq!(
            *asked.lock().unwrap(),
            [
                format!(
                    "Action=CreateTags&{version}&ResourceId.1=i-1&Tag.1.Key=Role&Tag.1.Value=primary"
                ),
                format!(
                    "Action=DescribeVolumes&{version}&Filter.1.Name=attachment.instance-id&Filter.1.Value.1=i-1"
                ),
                format!(
                    "Action=CreateTags&{version}&ResourceId.1=vol-1&ResourceId.2=vol-2&Tag.1.Key=Name&Tag.1.Value=spilo_my%2Fcluster\
                     &Tag.2.Key=Role&Tag.2.Value=primary&Tag.3.Key=Instance&Tag.3.Value=i-1"
                ),
            ]
        );
    }

    #[tokio::test]
    async fn a_tag_that_can_not_be_set_is_no_failure_and_wrong_arguments_are() {
        let (url, asked) = stand_in(1000).await;
        let (code, said) = ran("on_start replica c", &url, Duration::from_millis(10)).await;
        assert!(
            code == 0 && said.contains("nothing more is tagged"),
            "{said}"
        );
        assert!(asked.lock().unwrap().is_empty());
        let (code, said) = ran("on_start replica c", "http://127.0.0.1:1", PATIENCE).await;
        assert!(code == 0 && said.contains("no EC2 instance"), "{said}");
        for line in [
            "",
            "on_start replica",
            "on_reload replica c",
            "on_start a b c",
        ] {
            let (code, said) = ran(line, "http://127.0.0.1:1", PATIENCE).await;
            assert!(code == 1 && said.starts_with("Usage: "), "{line}: {said}");
        }
    }
}
