//! The manifests of `compose/kubernetes`: an API server takes them, a member that is started from them reads its settings, and may do
//! what it must and no more. No store: the suite does not run on them.

use std::collections::BTreeSet;
use std::rc::Rc;

use anyhow::{Context, ensure};
use async_trait::async_trait;
use howdah::config::{Config, DcsSection, FakeEnvironment, Kubernetes as Section};
use serde_json::{Value, json};

use crate::harness::{Backend, Case, Harness, own};
use crate::kubernetes_server::{ACCOUNT, ADMIN, Kind, Kubernetes, STRANGER, manifests};
use crate::memory::Memory;

type Outcome = anyhow::Result<()>;

/// Keeps the server for as long as the cases run.
pub(crate) struct Manifests {
    _kubernetes: Rc<Kubernetes>,
}

pub(crate) async fn all() -> anyhow::Result<Rc<dyn Backend>> {
    Ok(Rc::new(Manifests {
        _kubernetes: Kubernetes::shared().await?,
    }))
}

#[async_trait(?Send)]
impl Backend for Manifests {
    async fn harness(&self, case: &str) -> anyhow::Result<Box<dyn Harness>> {
        Memory.harness(case).await
    }

    fn is_store(&self) -> bool {
        false
    }

    fn own_cases(&self) -> Vec<Case> {
        own![
            server_takes_every_object,
            member_reads_its_settings,
            services_find_the_members,
            pods_ask_for_little_and_are_asked_how_they_are,
            member_with_configmaps_may_do_what_it_must,
            member_with_endpoints_may_do_what_it_must,
            only_the_extra_role_shows_the_servers,
        ]
    }
}

const KINDS: [Kind; 2] = [Kind::ConfigMaps, Kind::Endpoints];

/// The objects of an overlay as they are submitted.
async fn objects(kubernetes: &Kubernetes, kind: Kind) -> anyhow::Result<Vec<Value>> {
    let overlay = kind.overlay();
    let overlay = overlay.to_str().context("a path that is no text")?;
    let text = kubernetes
        .kubectl(&["create", "--dry-run=client", "-o", "json", "-k", overlay])
        .await?;
    let objects = serde_json::Deserializer::from_str(&text).into_iter();
    Ok(objects.collect::<Result<_, _>>()?)
}

fn named<'a>(objects: &'a [Value], kind: &str, name: &str) -> anyhow::Result<&'a Value> {
    objects
        .iter()
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
        .with_context(|| format!("no {kind} {name}"))
}

/// kubectl refuses fields that the server does not know, the server what is wrong with those that it knows.
async fn server_takes_every_object() -> Outcome {
    let kubernetes = Kubernetes::shared().await?;
    let wanted = [
        "role.rbac.authorization.k8s.io/howdah",
        "rolebinding.rbac.authorization.k8s.io/howdah",
        "service/demo",
        "service/demo-members",
        "service/demo-replica",
        "serviceaccount/howdah",
        "statefulset.apps/demo",
    ];
    for kind in KINDS {
        let namespace = format!("dry-{}", kind.plural());
        kubernetes.namespace(&namespace).await?;
        let overlay = kind.overlay();
        let overlay = overlay.to_str().context("a path that is no text")?;
        let said = kubernetes
            .kubectl(&["apply", "--dry-run=server", "-n", &namespace, "-k", overlay])
            .await?;
        let taken: BTreeSet<&str> = said
            .lines()
            .filter_map(|line| line.strip_suffix(" created (server dry run)"))
            .collect();
        ensure!(taken == BTreeSet::from(wanted), "{kind:?}: {said}");
        let path = format!("/apis/apps/v1/namespaces/{namespace}/statefulsets/demo");
        let answer = kubernetes.ask(ADMIN, "GET", &path, None).await?;
        ensure!(answer.status == 404, "not dry at all: {answer:?}");
    }
    let bypass = manifests().join("bypass.yaml");
    let bypass = bypass.to_str().context("a path that is no text")?;
    let said = kubernetes
        .kubectl(&["apply", "--dry-run=server", "-f", bypass])
        .await?;
    ensure!(said.lines().count() == 2, "{said}");
    Ok(())
}

/// A variable that the image brings along.
fn of_the_image(name: &str) -> anyhow::Result<(String, String)> {
    let recipe = include_str!("../../docker/Dockerfile");
    let value = recipe
        .split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        .with_context(|| format!("the image has no {name}"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// What a pod's container has in its environment, where the node fills in the pod's own data and the secret's.
fn environment(pod: &Value) -> anyhow::Result<Vec<(String, String)>> {
    let mut found = vec![of_the_image("PATRONI_POSTGRESQL_DATA_DIR")?];
    for variable in pod["spec"]["containers"][0]["env"]
        .as_array()
        .context("no environment")?
    {
        let name = variable["name"].as_str().context("no name")?;
        let from = &variable["valueFrom"];
        let mut value = match (
            variable["value"].as_str(),
            from["fieldRef"]["fieldPath"].as_str(),
        ) {
            (Some(value), None) => value.to_owned(),
            (None, Some("metadata.name")) => "demo-0".to_owned(),
            (None, Some("metadata.namespace")) => "there".to_owned(),
            (None, Some("status.podIP")) => "10.1.2.3".to_owned(),
            (None, None) => from["secretKeyRef"]["key"]
                .as_str()
                .context("no value")?
                .to_owned(),
            _ => anyhow::bail!("not known here: {variable}"),
        };
        // Only what stands before it in the list can be named.
        for (earlier, replacement) in &found {
            value = value.replace(&format!("$({earlier})"), replacement);
        }
        found.push((name.to_owned(), value));
    }
    Ok(found)
}

fn settings(objects: &[Value]) -> anyhow::Result<(Config, Section)> {
    let set = named(objects, "StatefulSet", "demo")?;
    let variables = environment(&set["spec"]["template"])?;
    let variables: Vec<(&str, &str)> = variables
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let loaded = Config::load(None, &FakeEnvironment::new(&variables))
        .map_err(|faults| anyhow::anyhow!("{faults}"))?;
    ensure!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let DcsSection::Kubernetes(section) = &loaded.config.dcs else {
        anyhow::bail!("the store is {:?}", loaded.config.dcs);
    };
    let section = section.clone();
    Ok((loaded.config, section))
}

async fn member_reads_its_settings() -> Outcome {
    let kubernetes = Kubernetes::shared().await?;
    for kind in KINDS {
        let objects = objects(&kubernetes, kind).await?;
        let (config, section) = settings(&objects)?;
        ensure!(config.name.as_str() == "demo-0" && config.scope == "demo");
        ensure!(section.namespace == "there", "{section:?}");
        ensure!(section.use_endpoints == (kind == Kind::Endpoints));
        ensure!(section.pod_ip.as_deref() == Some("10.1.2.3"));
        let reached = config.postgresql.connect_address.to_string();
        ensure!(reached == "10.1.2.3:5432", "{reached}");
        let reached = config.restapi.connect_address.to_string();
        ensure!(reached == "10.1.2.3:8008", "{reached}");
        // The members are the pods that have the store's labels and the scope's.
        let set = named(&objects, "StatefulSet", "demo")?;
        let labels = &set["spec"]["template"]["metadata"]["labels"];
        for (name, value) in &section.labels {
            ensure!(
                labels[name] == *value.as_str(),
                "{labels} lacks {name}={value}"
            );
        }
        ensure!(
            labels[&section.scope_label] == *config.scope.as_str(),
            "{labels}"
        );
    }
    Ok(())
}

/// A Service with a selector finds pods of the cluster and of one role; the leader's has none where the leader writes the Endpoints.
async fn services_find_the_members() -> Outcome {
    let kubernetes = Kubernetes::shared().await?;
    for kind in KINDS {
        let objects = objects(&kubernetes, kind).await?;
        let (config, section) = settings(&objects)?;
        let set = named(&objects, "StatefulSet", "demo")?;
        let pods = &set["spec"]["template"]["metadata"]["labels"];
        let role = |value: &str| {
            let mut labels = pods.clone();
            labels[&section.role_label] = json!(value);
            labels
        };
        let selector = |name: &str| {
            Ok::<_, anyhow::Error>(named(&objects, "Service", name)?["spec"]["selector"].clone())
        };
        let leader = match kind {
            Kind::ConfigMaps => role(&section.leader_label_value),
            Kind::Endpoints => Value::Null,
        };
        // The leader object in Endpoints has the name of the scope, and so its Service must.
        ensure!(selector(&config.scope)? == leader, "{kind:?}");
        ensure!(selector("demo-replica")? == role(&section.follower_label_value));
        ensure!(selector("demo-members")? == *pods);
        ensure!(set["spec"]["serviceName"] == "demo-members");
    }
    Ok(())
}

/// Under the strictest of Kubernetes' own rules for pods; what is written goes to a volume, and the probes reach the REST API.
async fn pods_ask_for_little_and_are_asked_how_they_are() -> Outcome {
    let kubernetes = Kubernetes::shared().await?;
    for kind in KINDS {
        let objects = objects(&kubernetes, kind).await?;
        let (config, _) = settings(&objects)?;
        let set = named(&objects, "StatefulSet", "demo")?;
        let pod = &set["spec"]["template"]["spec"];
        ensure!(pod["serviceAccountName"] == ACCOUNT);
        let context = &pod["securityContext"];
        ensure!(context["runAsNonRoot"] == true, "{context}");
        ensure!(context["seccompProfile"]["type"] == "RuntimeDefault");
        // Whoever runs in it may write to its volumes.
        ensure!(context["fsGroup"] == context["runAsGroup"], "{context}");
        let container = &pod["containers"][0];
        let wanted = json!({
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        });
        ensure!(container["securityContext"] == wanted, "{container}");
        let mounts = container["volumeMounts"].as_array().context("no mounts")?;
        let is_in_a_volume = mounts.iter().any(|mount| {
            let path = mount["mountPath"].as_str();
            path.is_some_and(|path| config.postgresql.data_dir.starts_with(path))
        });
        ensure!(is_in_a_volume, "{:?}", config.postgresql.data_dir);
        let ports = container["ports"].as_array().context("no ports")?;
        for (probe, path) in [
            ("livenessProbe", "/liveness"),
            ("readinessProbe", "/readiness"),
        ] {
            let get = &container[probe]["httpGet"];
            ensure!(get["path"] == path, "{get}");
            let port = ports.iter().find(|port| port["name"] == get["port"]);
            let port = &port.context("a probe of no port")?["containerPort"];
            let listens = config.restapi.listen.port.map(u64::from);
            ensure!(port.as_u64() == listens, "{probe}: {port}");
        }
    }
    Ok(())
}

/// Asks for each thing, for which it must be let through or not.
async fn may(
    kubernetes: &Kubernetes,
    token: &str,
    wanted: &[(&str, String, Option<Value>, bool)],
) -> Outcome {
    for (method, path, body, allowed) in wanted {
        let answer = kubernetes.ask(token, method, path, body.clone()).await?;
        let refused = answer.status == 403;
        ensure!(refused != *allowed, "{method} {path}: {answer:?}");
        ensure!(
            refused || answer.status < 300,
            "{method} {path}: {answer:?}"
        );
    }
    Ok(())
}

async fn member_may(kind: Kind, other: Kind) -> Outcome {
    let kubernetes = Kubernetes::shared().await?;
    let namespace = format!("may-{}", kind.plural());
    let token = kubernetes.member(&namespace, kind).await?;
    let labels = json!({ "application": "howdah", "cluster-name": "demo" });
    kubernetes.pod(&namespace, "demo-0", &labels, None).await?;
    let at = |rest: &str| format!("/api/v1/namespaces/{namespace}/{rest}");
    let (mine, others) = (kind.plural(), other.plural());
    let metadata = |name: &str| Some(json!({ "metadata": { "name": name, "labels": labels } }));
    let note = || Some(json!({ "metadata": { "annotations": { "leader": "demo-0" } } }));
    let headless = json!({
        "metadata": { "name": "demo-config" },
        "spec": { "clusterIP": "None", "ports": [{ "port": 5432 }] },
    });
    let selector = "labelSelector=application%3Dhowdah%2Ccluster-name%3Ddemo";
    let watch = "watch=1&timeoutSeconds=1";
    let anew = || metadata("anew");
    let wanted = [
        // A turn of the loop, and the commands for people.
        ("POST", at(mine), metadata("demo-x"), true),
        ("GET", at(&format!("{mine}?{selector}")), None, true),
        ("GET", at(&format!("{mine}?{selector}&{watch}")), None, true),
        ("GET", at(&format!("{mine}/demo-x")), None, true),
        ("PATCH", at(&format!("{mine}/demo-x")), note(), true),
        ("GET", at(&format!("pods?{selector}")), None, true),
        ("GET", at(&format!("pods?{selector}&{watch}")), None, true),
        ("GET", at("pods/demo-0"), None, true),
        ("PATCH", at("pods/demo-0"), note(), true),
        ("DELETE", at(&format!("{mine}?{selector}")), None, true),
        // A headless Service keeps the settings' Endpoints; ConfigMaps need none.
        (
            "POST",
            at("services"),
            Some(headless),
            kind == Kind::Endpoints,
        ),
        // Nothing else.
        (
            "PUT",
            at(&format!("{mine}/demo-x")),
            metadata("demo-x"),
            false,
        ),
        ("DELETE", at(&format!("{mine}/demo-x")), None, false),
        ("GET", at(others), None, false),
        ("POST", at(others), anew(), false),
        ("POST", at("pods"), anew(), false),
        ("PUT", at("pods/demo-0"), metadata("demo-0"), false),
        ("DELETE", at("pods/demo-0"), None, false),
        ("DELETE", at("pods"), None, false),
        ("POST", at("pods/demo-0/exec?command=id"), None, false),
        ("PATCH", at("pods/demo-0/status"), note(), false),
        ("GET", at("services"), None, false),
        ("PATCH", at("services/demo"), note(), false),
        ("GET", at("secrets"), None, false),
        (
            "POST",
            at(&format!("serviceaccounts/{ACCOUNT}/token")),
            Some(json!({})),
            false,
        ),
        ("GET", "/api/v1/pods".to_owned(), None, false),
        ("GET", format!("/api/v1/{mine}"), None, false),
        (
            "GET",
            format!("/api/v1/namespaces/default/{mine}"),
            None,
            false,
        ),
        (
            "GET",
            format!("/apis/apps/v1/namespaces/{namespace}/statefulsets/demo"),
            None,
            false,
        ),
    ];
    may(&kubernetes, &token, &wanted).await?;
    // The rights come from the binding and from nowhere else.
    may(&kubernetes, STRANGER, &[("GET", at(mine), None, false)]).await
}

async fn member_with_configmaps_may_do_what_it_must() -> Outcome {
    member_may(Kind::ConfigMaps, Kind::Endpoints).await
}

async fn member_with_endpoints_may_do_what_it_must() -> Outcome {
    member_may(Kind::Endpoints, Kind::ConfigMaps).await
}

/// The addresses of the API servers lie in another namespace than the members.
async fn only_the_extra_role_shows_the_servers() -> Outcome {
    let kubernetes = Kubernetes::shared().await?;
    // The role's file names this namespace as the members'.
    let token = kubernetes.member("default", Kind::ConfigMaps).await?;
    kubernetes.publish(&[kubernetes.address(0)]).await?;
    let path = "/api/v1/namespaces/default/endpoints/kubernetes";
    let answer = kubernetes.ask(&token, "GET", path, None).await?;
    ensure!(answer.status == 403, "{answer:?}");
    let bypass = manifests().join("bypass.yaml");
    let bypass = bypass.to_str().context("a path that is no text")?;
    kubernetes.kubectl(&["apply", "-f", bypass]).await?;
    // The server learns of roles by a watch.
    let shown = crate::harness::eventually("the role", async || {
        let answer = kubernetes.ask(&token, "GET", path, None).await.ok()?;
        (answer.status == 200).then_some(answer.body)
    })
    .await?;
    let subset = &shown["subsets"][0];
    let address = format!(
        "{}:{}",
        subset["addresses"][0]["ip"].as_str().unwrap_or_default(),
        subset["ports"][0]["port"]
    );
    ensure!(address == kubernetes.address(0), "{shown}");
    let other = "/api/v1/namespaces/default/endpoints";
    let answer = kubernetes.ask(&token, "GET", other, None).await?;
    ensure!(answer.status == 403, "{answer:?}");
    Ok(())
}
