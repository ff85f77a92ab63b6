//! The docker command line, and a laboratory whose containers, network and volumes vanish with it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use howdah::clock;

/// Runs docker; the trimmed standard output, or everything it said on failure.
pub(crate) fn try_docker<S: AsRef<str>>(args: &[S]) -> Result<String, String> {
    let output = docker_output(args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        let line = args.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" ");
        Err(format!(
            "docker {line}: {}\n{}\n{}",
            output.status,
            text(&output.stdout),
            text(&output.stderr)
        ))
    }
}

pub(crate) fn docker_output<S: AsRef<str>>(args: &[S]) -> Output {
    Command::new("docker")
        .args(args.iter().map(AsRef::as_ref))
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

pub(crate) fn docker<S: AsRef<str>>(args: &[S]) -> String {
    try_docker(args).unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn setting(name: &str) -> Option<String> {
    std::env::var_os(name)?
        .into_string()
        .ok()
        .filter(|value| !value.is_empty())
}

/// The image under test.
pub(crate) fn image() -> String {
    setting("HOWDAH_IMAGE").unwrap_or_else(|| "howdah:pg17".to_owned())
}

/// The image of one major version of PostgreSQL.
pub(crate) fn image_of_major(major: u32) -> String {
    format!("howdah:pg{major}")
}

pub(crate) fn etcd_image() -> String {
    setting("ETCD_IMAGE").unwrap_or_else(|| "howdah-etcd".to_owned())
}

/// The image of one of the other stores' servers.
pub(crate) fn store_image(store: &str) -> String {
    setting(&format!("{}_IMAGE", store.to_uppercase())).unwrap_or_else(|| format!("howdah-{store}"))
}

/// One story's own network, and everything in it.
pub(crate) struct Lab {
    id: String,
    label: String,
    containers: Mutex<Vec<String>>,
}

impl Lab {
    pub(crate) fn new(story: &str) -> Lab {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let run =
            setting("HOWDAH_TEST_RUN").unwrap_or_else(|| format!("run{}", std::process::id()));
        let id = format!(
            "howdah-{run}-{}-{story}",
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let label = format!("howdah.test={run}");
        docker(&["network", "create", "--label", &label, &id]);
        Lab {
            id,
            label,
            containers: Mutex::default(),
        }
    }

    pub(crate) fn network(&self) -> &str {
        &self.id
    }

    /// This machine's own address in the network.
    pub(crate) fn gateway(&self) -> IpAddr {
        let format = "{{range .IPAM.Config}}{{.Gateway}}{{end}}";
        docker(&["network", "inspect", "-f", format, &self.id])
            .parse()
            .unwrap()
    }

    /// An empty volume.
    pub(crate) fn volume(&self, name: &str) -> String {
        self.volume_with(name, &[])
    }

    /// A volume of a few megabytes, which are gone once no container uses it.
    pub(crate) fn small_volume(&self, name: &str, megabytes: u32) -> String {
        let size = format!("o=size={megabytes}m,mode=1777");
        let options = [
            "--opt",
            "type=tmpfs",
            "--opt",
            "device=tmpfs",
            "--opt",
            &size,
        ];
        self.volume_with(name, &options)
    }

    fn volume_with(&self, name: &str, options: &[&str]) -> String {
        let name = format!("{}-{name}", self.id);
        let mut args = vec!["volume", "create", "--label", &self.label];
        args.extend(options);
        args.push(&name);
        docker(&args)
    }

    /// Starts a container that the network knows as `name`; `options` go before the image, `command` after it.
    pub(crate) fn run(
        &self,
        name: &str,
        image: &str,
        options: &[&str],
        command: &[&str],
    ) -> Container {
        let full = format!("{}-{name}", self.id);
        let mut args = vec![
            "run",
            "-d",
            "--name",
            &full,
            "--hostname",
            name,
            "--label",
            &self.label,
        ];
        args.extend(["--network", &self.id, "--network-alias", name]);
        args.extend(options);
        args.push(image);
        args.extend(command);
        self.containers.lock().unwrap().push(full.clone());
        docker(&args);
        Container {
            name: name.to_owned(),
            full,
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let containers = self.containers.get_mut().unwrap().clone();
        if std::thread::panicking() {
            for container in &containers {
                let output = docker_output(&["logs", "--tail", "5000", container]);
                let both = [output.stdout, output.stderr].concat();
                let text = String::from_utf8_lossy(&both);
                // What the recorder provokes on every standby would hide the rest.
                let noise = [
                    "cannot execute INSERT in a read-only",
                    "insert into recorded",
                ];
                let lines: Vec<&str> = text
                    .lines()
                    .filter(|line| !noise.iter().any(|part| line.contains(part)))
                    .collect();
                println!(
                    "--- {container}\n{}",
                    lines[lines.len().saturating_sub(80)..].join("\n")
                );
            }
        }
        for container in containers {
            docker_output(&["rm", "-fv", &container]);
        }
        docker_output(&["network", "rm", &self.id]);
        let volumes = try_docker(&[
            "volume",
            "ls",
            "-q",
            "--filter",
            &format!("name={}", self.id),
        ])
        .unwrap_or_default();
        for volume in volumes.lines() {
            docker_output(&["volume", "rm", "-f", volume]);
        }
    }
}

#[derive(Clone)]
pub(crate) struct Container {
    /// Its name in the network.
    pub(crate) name: String,
    full: String,
}

impl Container {
    pub(crate) fn exec(&self, command: &[&str]) -> Result<String, String> {
        let mut args = vec!["exec", &self.full];
        args.extend(command);
        try_docker(&args)
    }

    pub(crate) fn shell(&self, script: &str) -> Result<String, String> {
        self.exec(&["sh", "-c", script])
    }

    pub(crate) fn logs(&self) -> String {
        let output = docker_output(&["logs", &self.full]);
        format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    }

    pub(crate) fn inspect(&self, format: &str) -> String {
        try_docker(&["inspect", "-f", format, &self.full]).unwrap_or_default()
    }

    /// Its address in the network, which this machine reaches too; changes over a restart.
    pub(crate) fn ip(&self) -> Option<IpAddr> {
        self.inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")
            .parse()
            .ok()
    }

    pub(crate) fn is_running(&self) -> bool {
        self.inspect("{{.State.Running}}") == "true"
    }

    /// Its status once it has ended.
    pub(crate) fn exit_status(&self) -> Option<i32> {
        (self.inspect("{{.State.Status}}") == "exited")
            .then(|| self.inspect("{{.State.ExitCode}}").parse().unwrap())
    }

    pub(crate) fn kill(&self) {
        docker(&["kill", &self.full]);
    }

    pub(crate) fn stop(&self) {
        docker(&["stop", "-t", "60", &self.full]);
    }

    pub(crate) fn start(&self) {
        docker(&["start", &self.full]);
    }

    pub(crate) fn restart(&self) {
        docker(&["restart", "-t", "60", &self.full]);
    }

    pub(crate) fn disconnect(&self, lab: &Lab) {
        docker(&["network", "disconnect", lab.network(), &self.full]);
    }

    pub(crate) fn connect(&self, lab: &Lab) {
        docker(&[
            "network",
            "connect",
            "--alias",
            &self.name,
            lab.network(),
            &self.full,
        ]);
    }

    /// Sends a signal to the postmaster itself.
    pub(crate) fn signal_postmaster(&self, signal: &str) {
        self.shell(&format!(
            "kill -{signal} $(head -n 1 \"$PATRONI_POSTGRESQL_DATA_DIR/postmaster.pid\")"
        ))
        .unwrap();
    }

    /// Sends a signal to the agent, past init: the child of PID 1 that runs the same program.
    pub(crate) fn signal_agent(&self, signal: &str) {
        let script = format!(
            "for pid in $(cat /proc/1/task/1/children); do \
             if [ \"$(readlink /proc/$pid/exe)\" = \"$(readlink /proc/1/exe)\" ]; then kill -{signal} $pid && exit; fi; done; exit 1"
        );
        self.shell(&script).unwrap();
    }

    pub(crate) fn environment(&self) -> HashMap<String, String> {
        self.exec(&["env"])
            .unwrap()
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }
}

/// Polls until there is something, or fails the story.
pub(crate) fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = clock::now() + limit;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(
            clock::now() < end,
            "waited {} s in vain until {what}",
            limit.as_secs()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn wait_until(what: &str, limit: Duration, mut probe: impl FnMut() -> bool) {
    wait_for(what, limit, || probe().then_some(()));
}
