//! Does the harm, and takes it back.

use std::time::Duration;

use crate::docker::{Container, docker, image, try_docker};
use crate::field::Field;
use crate::plan::{Fault, Harm, Target};

/// A fault with the containers that it strikes.
#[derive(Clone)]
pub(crate) struct Strike {
    pub(crate) fault: Fault,
    pub(crate) victims: Vec<Container>,
    /// Whether the leader of that moment is among the victims.
    pub(crate) hits_leader: bool,
}

impl Strike {
    /// Finds out whom the fault means now.
    pub(crate) fn aim(field: &Field, fault: Fault) -> Result<Strike, String> {
        let leader = field.leader().ok_or("nobody leads")?;
        let standbys = field.cluster.others(leader);
        let etcd = &field.cluster.etcd;
        let victims = match fault.target {
            Target::Leader => vec![leader.container.clone()],
            Target::Standby(number) => vec![standbys[number].container.clone()],
            Target::Store(server) => match fault.harm {
                Harm::StoreServerKilled | Harm::StoreServerPaused => vec![etcd[server].clone()],
                Harm::StoreMajorityKilled => {
                    vec![
                        etcd[server].clone(),
                        etcd[(server + 1) % etcd.len()].clone(),
                    ]
                }
                _ => etcd.clone(),
            },
        };
        Ok(Strike {
            fault,
            victims,
            hits_leader: fault.target == Target::Leader,
        })
    }

    pub(crate) fn describe(&self) -> String {
        let names: Vec<&str> = self
            .victims
            .iter()
            .map(|victim| victim.name.as_str())
            .collect();
        format!(
            "{} ({}{})",
            self.fault.harm.name(),
            names.join(", "),
            if self.hits_leader { ", leader" } else { "" }
        )
    }

    pub(crate) fn begin(&self, field: &Field) -> Result<(), String> {
        for victim in &self.victims {
            match self.fault.harm {
                Harm::AgentKilled => signal_agent(victim, "KILL")?,
                Harm::AgentFrozen => signal_agent(victim, "STOP")?,
                Harm::PostmasterKilled => signal_postmaster(victim, "KILL")?,
                Harm::PostmasterFrozen => signal_postmaster(victim, "STOP")?,
                Harm::ContainerKilled | Harm::StoreServerKilled | Harm::StoreMajorityKilled => {
                    victim.kill()
                }
                Harm::ContainerStopped => victim.stop(),
                Harm::ContainerPaused | Harm::StoreServerPaused | Harm::StorePaused => {
                    change("pause", victim)?
                }
                Harm::NodeCut => cut(field, victim, &Cut::AllButClients)?,
                Harm::NodeCutAndUnseen => cut(field, victim, &Cut::All)?,
                Harm::StoreCut => cut(field, victim, &Cut::From(&field.cluster.etcd))?,
                Harm::PeersCut => cut(field, victim, &Cut::From(&members(field)))?,
                Harm::DiskFull => fill(field, victim, self.hits_leader)?,
                Harm::StoreRestarted => (),
            }
        }
        if self.fault.harm == Harm::StoreRestarted {
            let ids: Vec<String> = self.victims.iter().map(id).collect();
            let mut args = vec!["restart", "-t", "0"];
            args.extend(ids.iter().map(String::as_str));
            try_docker(&args)?;
        }
        Ok(())
    }

    pub(crate) fn end(&self, field: &Field) -> Result<(), String> {
        for victim in &self.victims {
            match self.fault.harm {
                Harm::AgentKilled | Harm::PostmasterKilled | Harm::StoreRestarted => (),
                Harm::AgentFrozen => signal_agent(victim, "CONT")?,
                // It may have been stopped for good meanwhile, and with it its pid file.
                Harm::PostmasterFrozen => drop(signal_postmaster(victim, "CONT")),
                Harm::ContainerKilled
                | Harm::ContainerStopped
                | Harm::StoreServerKilled
                | Harm::StoreMajorityKilled => victim.start(),
                Harm::ContainerPaused | Harm::StoreServerPaused | Harm::StorePaused => {
                    change("unpause", victim)?
                }
                Harm::NodeCut | Harm::NodeCutAndUnseen | Harm::StoreCut | Harm::PeersCut => {
                    in_network_of(victim, "iptables -F INPUT; iptables -F OUTPUT")?;
                }
                Harm::DiskFull => drop(field.disks.shell(&format!("rm -f {}", filler(victim)))?),
            }
        }
        field.find_addresses();
        Ok(())
    }
}

fn id(container: &Container) -> String {
    container.inspect("{{.Id}}")
}

fn change(verb: &str, victim: &Container) -> Result<(), String> {
    try_docker(&[verb, &id(victim)]).map(drop)
}

fn signal_agent(victim: &Container, signal: &str) -> Result<(), String> {
    victim
        .shell(&format!(
            "for pid in $(cat /proc/1/task/1/children); do \
             if [ \"$(readlink /proc/$pid/exe)\" = \"$(readlink /proc/1/exe)\" ]; then kill -{signal} $pid && exit; fi; done; exit 1"
        ))
        .map(drop)
}

fn signal_postmaster(victim: &Container, signal: &str) -> Result<(), String> {
    victim
        .shell(&format!(
            "kill -{signal} $(head -n 1 \"$PATRONI_POSTGRESQL_DATA_DIR/postmaster.pid\")"
        ))
        .map(drop)
}

fn members(field: &Field) -> Vec<Container> {
    field
        .cluster
        .nodes
        .iter()
        .map(|node| node.container.clone())
        .collect()
}

enum Cut<'a> {
    All,
    AllButClients,
    From(&'a [Container]),
}

/// Packets vanish without a word, as when a cable is drawn; established connections stay open at both ends.
fn cut(field: &Field, victim: &Container, from: &Cut<'_>) -> Result<(), String> {
    let mut rules = Vec::new();
    let mut both = |there: &str, back: &str, verdict: &str| {
        rules.push(format!("iptables -A INPUT {there} -j {verdict}"));
        rules.push(format!("iptables -A OUTPUT {back} -j {verdict}"));
    };
    if let Cut::From(others) = from {
        for other in others.iter().filter(|other| other.name != victim.name) {
            if let Some(ip) = other.ip() {
                both(&format!("-s {ip}"), &format!("-d {ip}"), "DROP");
            }
        }
    } else {
        both("-i lo", "-o lo", "ACCEPT");
        if let Cut::AllButClients = from {
            let gateway = docker(&[
                "network",
                "inspect",
                "-f",
                "{{(index .IPAM.Config 0).Gateway}}",
                field.cluster.lab.network(),
            ]);
            both(&format!("-s {gateway}"), &format!("-d {gateway}"), "ACCEPT");
        }
        both("", "", "DROP");
    }
    in_network_of(victim, &format!("set -e; {}", rules.join("; ")))
}

/// Runs the docker host's own tools in the network of a container.
fn in_network_of(victim: &Container, script: &str) -> Result<(), String> {
    let network = format!("container:{}", id(victim));
    let script = format!("PATH=/usr/sbin:/sbin:/usr/bin:/bin; {script}");
    let image = image();
    let args = [
        "run",
        "--rm",
        "--network",
        &network,
        "--cap-add",
        "NET_ADMIN",
        "--user",
        "0",
        "-v",
        "/:/host",
        "--no-healthcheck",
        &image,
        "chroot",
        "/host",
        "sh",
        "-c",
        &script,
    ];
    try_docker(&args).map(drop)
}

fn filler(victim: &Container) -> String {
    format!("/disks/{}/filler", victim.name)
}

/// Fills a member's disk. On a leader also uses up the WAL files that are kept for reuse, or nobody would notice for a while.
fn fill(field: &Field, victim: &Container, leads: bool) -> Result<(), String> {
    let path = filler(victim);
    let script = format!(
        "dd if=/dev/zero of={path} bs=1M 2>/dev/null; dd if=/dev/zero bs=4k 2>/dev/null >> {path}; true"
    );
    field.disks.shell(&script)?;
    let leader = field.leader().filter(|_| leads);
    for _ in 0..6 {
        if let Some(node) = leader {
            // It fails once the last file is full; that is the point.
            let _ = node.sql("select pg_switch_wal()");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    Ok(())
}
