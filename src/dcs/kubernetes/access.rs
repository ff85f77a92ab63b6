//! How the API server is reached: from inside a pod by what Kubernetes puts there, from elsewhere by a kubeconfig (spec/dcs.md §5.7).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::ClientConfig;
use serde_json::Value;

use crate::config::{Environment, yaml};
use crate::dcs::tls::{self, Pem, Trust};

/// What Kubernetes mounts into a pod.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Who this node says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// Nobody, or whom the client certificate names.
    None,
    /// Bearer of this token.
    Token(String),
    /// Bearer of the token in this file, which is replaced from time to time.
    TokenFile(PathBuf),
    /// The value of an `Authorization: Basic` header.
    Basic(String),
}

/// One API server, and how to speak to it.
#[derive(Debug, Clone)]
pub struct Access {
    /// `https://host:port`.
    pub server: String,
    /// Who this node says it is.
    pub credential: Credential,
    pub(super) tls: Arc<ClientConfig>,
}

impl Access {
    /// With a token from a file, and an authority to trust.
    ///
    /// # Errors
    /// The authority cannot be read.
    pub fn with_token_file(server: &str, token: &Path, authority: &Path) -> anyhow::Result<Self> {
        Ok(Access {
            server: server.to_owned(),
            credential: Credential::TokenFile(token.to_owned()),
            tls: tls::client(Trust::Authorities(authority), None, None, None)?,
        })
    }

    /// As the bearer of one token.
    #[must_use]
    pub fn with_token(self, token: &str) -> Self {
        Access {
            credential: Credential::Token(token.to_owned()),
            ..self
        }
    }

    /// As the surroundings tell: inside a pod first, then `$KUBECONFIG`, then `~/.kube/config` with this context or its current one.
    ///
    /// # Errors
    /// Neither is there, or what is there cannot be used; the message names it.
    pub fn find(
        environment: &dyn Environment,
        cacert: Option<&Path>,
        context: &str,
    ) -> anyhow::Result<Self> {
        let variables = environment.variables();
        let given = |name: &str| variables.get(name).filter(|value| !value.is_empty());
        if let (Some(host), Some(port)) = (
            given("KUBERNETES_SERVICE_HOST"),
            given("KUBERNETES_SERVICE_PORT"),
        ) {
            let host = if host.contains(':') {
                format!("[{host}]")
            } else {
                host.clone()
            };
            let authority = cacert.map_or_else(|| Path::new(ACCOUNT).join("ca.crt"), PathBuf::from);
            let token = Path::new(ACCOUNT).join("token");
            return Self::with_token_file(&format!("https://{host}:{port}"), &token, &authority)
                .context("kubernetes: the service account of this pod cannot be used");
        }
        let file = given("KUBECONFIG").map(PathBuf::from).or_else(|| {
            let home = given("HOME")?;
            Some(Path::new(home).join(".kube/config"))
        });
        let file = file.context(
            "kubernetes: this is no pod (KUBERNETES_SERVICE_HOST is not set), and there is no KUBECONFIG",
        )?;
        let text = environment.read(&file).with_context(|| {
            format!(
                "kubernetes: this is no pod (KUBERNETES_SERVICE_HOST is not set), and {} cannot be read",
                file.display()
            )
        })?;
        Self::of_kubeconfig(&text, &file, context, cacert)
            .with_context(|| format!("kubernetes: {}", file.display()))
    }

    fn of_kubeconfig(
        text: &str,
        file: &Path,
        context: &str,
        cacert: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let config = yaml::parse(text).map_err(|error| anyhow::anyhow!("{}", error.reason))?;
        let wanted = item(&config["contexts"], context)
            .or_else(|| item(&config["contexts"], config["current-context"].as_str()?))
            .context("has neither the context of kubernetes.context nor a current one")?;
        let context = &wanted["context"];
        let part = |list: &str, kind: &str| -> anyhow::Result<&Value> {
            let name = context[kind].as_str().unwrap_or_default();
            let found = item(&config[list], name);
            Ok(&found.with_context(|| format!("has no {kind} {name:?}"))?[kind])
        };
        let (cluster, user) = (part("clusters", "cluster")?, part("users", "user")?);
        let server = cluster["server"]
            .as_str()
            .context("the cluster names no server")?;
        let beside = |name: &str| file.parent().unwrap_or(Path::new("/")).join(name);
        let pem = |of: &Value, name: &str| -> anyhow::Result<Option<Pem>> {
            if let Some(data) = of[format!("{name}-data")].as_str() {
                let text = STANDARD.decode(data.trim());
                return Ok(Some(Pem::Text(
                    text.with_context(|| format!("{name}-data is not base64"))?,
                )));
            }
            Ok(of[name].as_str().map(|path| Pem::File(beside(path))))
        };
        let authority = match cacert {
            Some(path) => Some(Pem::File(path.to_owned())),
            None => pem(cluster, "certificate-authority")?,
        };
        let trust = match &authority {
            _ if cluster["insecure-skip-tls-verify"] == true => Trust::Anybody,
            Some(Pem::File(path)) => Trust::Authorities(path),
            Some(Pem::Text(text)) => Trust::Bundle(text),
            None => Trust::System,
        };
        let identity = match (pem(user, "client-certificate")?, pem(user, "client-key")?) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => bail!("the user has a client-certificate and no client-key"),
            (None, Some(_)) => bail!("the user has a client-key and no client-certificate"),
        };
        let credential = match user {
            _ if user["token"].is_string() => {
                Credential::Token(user["token"].as_str().unwrap_or_default().to_owned())
            }
            _ if user["tokenFile"].is_string() => {
                Credential::TokenFile(beside(user["tokenFile"].as_str().unwrap_or_default()))
            }
            _ if user["username"].is_string() => {
                let text = |name: &str| user[name].as_str().unwrap_or_default();
                let pair = format!("{}:{}", text("username"), text("password"));
                Credential::Basic(STANDARD.encode(pair))
            }
            _ if identity.is_some() => Credential::None,
            _ if user["exec"].is_object() => {
                bail!("the user's credentials come from a program (exec), which is not supported")
            }
            _ => Credential::None,
        };
        Ok(Access {
            server: server.to_owned(),
            credential,
            tls: tls::client_of(trust, identity.as_ref())?,
        })
    }
}

/// The item of a kubeconfig's list with this name.
fn item<'a>(list: &'a Value, name: &str) -> Option<&'a Value> {
    list.as_array()?.iter().find(|item| item["name"] == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::FakeEnvironment;

    const CONFIG: &str = "
apiVersion: v1
kind: Config
current-context: here
contexts:
- {name: here, context: {cluster: one, user: me}}
- {name: there, context: {cluster: two, user: somebody}}
clusters:
- {name: one, cluster: {server: 'https://one:6443', insecure-skip-tls-verify: true}}
- {name: two, cluster: {server: 'https://two:6443', insecure-skip-tls-verify: true}}
users:
- {name: me, user: {token: secret}}
- {name: somebody, user: {username: a, password: b}}
";

    fn of(context: &str) -> anyhow::Result<Access> {
        Access::of_kubeconfig(CONFIG, Path::new("/home/me/.kube/config"), context, None)
    }

    #[test]
    fn the_named_context_counts_before_the_current_one() {
        let there = of("there").unwrap();
        assert_eq!(there.server, "https://two:6443");
        assert_eq!(there.credential, Credential::Basic("YTpi".to_owned()));
        let here = of("kind-kind").unwrap();
        assert_eq!(here.server, "https://one:6443");
        assert_eq!(here.credential, Credential::Token("secret".to_owned()));
    }

    #[test]
    fn half_an_identity_and_an_empty_authority_are_named() {
        for (what, by, why) in [
            (
                "token: secret",
                "client-certificate: me.pem",
                "no client-key",
            ),
            (
                "token: secret",
                "client-key: me.pem",
                "no client-certificate",
            ),
            ("token: secret", "exec: {command: login}", "not supported"),
            (
                "insecure-skip-tls-verify: true",
                "certificate-authority-data: ''",
                "holds no certificate",
            ),
            (
                "insecure-skip-tls-verify: true",
                "certificate-authority-data: '!'",
                "is not base64",
            ),
        ] {
            let broken = CONFIG.replacen(what, by, 1);
            let error = Access::of_kubeconfig(&broken, Path::new("/x"), "here", None).unwrap_err();
            assert!(format!("{error:#}").contains(why), "{by}: {error:#}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let nowhere = Access::find(&FakeEnvironment::default(), None, "x").unwrap_err();
        assert!(format!("{nowhere:#}").contains("KUBECONFIG"), "{nowhere:#}");
        let broken = CONFIG.replace("cluster: one, user: me", "cluster: none, user: me");
        let error = Access::of_kubeconfig(&broken, Path::new("/x"), "here", None).unwrap_err();
        assert!(
            format!("{error:#}").contains("no cluster \"none\""),
            "{error:#}"
        );
    }
}
