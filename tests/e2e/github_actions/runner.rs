//! A stand-in for GitHub's runner: its directories, its requests, and its calls of the hook.

use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nspawn_common::sys::pidfd::wait_for_exit;
use nspawn_tests::{Done, call, image, sh};
use serde_json::{Value, json};

/// A runner with a job.
pub struct Runner {
    root: PathBuf,
    /// State that the hook returned, which the runner passes to its next call.
    pub state: Value,
    /// Value of `NSPAWN_BIND_RO` in the runner's environment.
    pub binds: &'static str,
}

/// Waits until a call of the hook ends, and kills it after a time limit.
pub fn wait_for_end(mut child: Child) -> Done {
    if !wait_for_exit(child.id().try_into().unwrap(), Duration::from_secs(90)).unwrap() {
        child.kill().unwrap();
    }
    Done::new(
        format!("the hook {}", child.id()),
        child.wait_with_output().unwrap(),
    )
}

/// Installs the hook by scripts/install on the first call, and returns its path.
pub fn hook() -> &'static Path {
    static HOOK: OnceLock<PathBuf> = OnceLock::new();
    HOOK.get_or_init(|| {
        let root = "/var/tmp/e2e-actions-installed";
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let install = repository.join("scripts/install");
        let destination = format!("DESTDIR={root}");
        call(
            "env",
            [
                &*destination,
                "PREFIX=/usr",
                install.to_str().unwrap(),
                "--no-build",
            ],
        )
        .expect(0);
        PathBuf::from(root).join("usr/lib/nspawn-ci/github-actions-hook.sh")
    })
}

fn volume(source: &Path, target: &str, is_read_only: bool) -> Value {
    json!({ "sourceVolumePath": source, "targetVolumePath": target, "readOnly": is_read_only })
}

impl Runner {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = PathBuf::from(format!(
            "/var/tmp/e2e-actions-{}-runner:{number}",
            std::process::id()
        ));
        for name in [
            "_runner_hook_responses",
            "_runner_file_commands",
            "_github_home",
            "_github_workflow",
        ] {
            fs::create_dir_all(root.join("_work/_temp").join(name)).unwrap();
        }
        // The directories for actions and tools are missing until a job needs them.
        for name in ["_work/it/it", "externals"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        Self {
            root,
            state: Value::Null,
            binds: "",
        }
    }

    /// Creates a runner with a job that has a machine.
    pub fn with_job() -> Self {
        let mut runner = Self::new();
        runner.call("prepare_job", &runner.job()).expect(0);
        runner
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Lists the machines with binds of the runner's directories.
    pub fn machines(&self) -> String {
        let root = self.root.display().to_string().replace(':', ".*");
        sh(&format!(
            "systemctl show --property=ExecStart 'nspawn-github-*' | grep -e '{root}/_work'"
        ))
        .out()
    }

    pub fn machine(&self) -> String {
        self.state["machine"].as_str().unwrap().to_owned()
    }

    /// Returns the arguments of `prepare_job`.
    pub fn job(&self) -> Value {
        json!({ "container": self.container(&[
            ("_work", "/__w", false),
            ("externals", "/__e", true),
            ("_work/_temp", "/__w/_temp", false),
            ("_work/_actions", "/__w/_actions", false),
            ("_work/_tool", "/__w/_tool", false),
            ("_work/_temp/_github_home", "/github/home", false),
            ("_work/_temp/_github_workflow", "/github/workflow", false),
        ]), "services": [] })
    }

    /// Returns the arguments of `run_container_step`.
    pub fn action(&self) -> Value {
        let mut action = self.container(&[
            ("_work/_temp/_github_home", "/github/home", false),
            (
                "_work/_temp/_runner_file_commands",
                "/github/file_commands",
                false,
            ),
            ("_work/it/it", "/github/workspace", false),
        ]);
        action["workingDirectory"] = json!("/github/workspace");
        action
    }

    fn container(&self, volumes: &[(&str, &str, bool)]) -> Value {
        let socket = "/var/run/docker.sock";
        let mut mounts = vec![volume(Path::new(socket), socket, false)];
        mounts.extend(
            volumes
                .iter()
                .map(|(source, target, ro)| volume(&self.path(source), target, *ro)),
        );
        json!({
            "image": format!("registry.example/ci/{}:latest", image()),
            "dockerfile": null,
            "entryPoint": null,
            "entryPointArgs": [],
            "workingDirectory": "/__w/it/it",
            "createOptions": null,
            "environmentVariables": { "HOME": "/github/home", "OF_JOB": "job" },
            "userMountVolumes": [],
            "systemMountVolumes": mounts,
            "registry": { "username": "user", "password": "word", "serverUrl": "registry.example" },
            "portMappings": [],
        })
    }

    /// Writes the script file of a step, and returns the arguments of `run_script_step`.
    pub fn step(&self, script: &str) -> Value {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("{}.sh", COUNT.fetch_add(1, Ordering::Relaxed));
        fs::write(self.path("_work/_temp").join(&name), script).unwrap();
        json!({
            "entryPoint": "bash",
            "entryPointArgs": ["--noprofile", "--norc", "-e", "-o", "pipefail", format!("/__w/_temp/{name}")],
            "environmentVariables": { "CI": "true" },
            "prependPath": [],
            "workingDirectory": "/__w/it/it",
        })
    }

    pub fn response_file(&self) -> PathBuf {
        self.path("_work/_temp/_runner_hook_responses/response.json")
    }

    /// Returns a request for the hook's stdin.
    pub fn request(&self, command: &str, args: &Value) -> File {
        let request = json!({ "command": command, "responseFile": self.response_file(), "args": args, "state": self.state });
        self.raw(format!("{request}\n").as_bytes())
    }

    pub fn raw(&self, bytes: &[u8]) -> File {
        let file = self.path("request");
        fs::write(&file, bytes).unwrap();
        fs::write(self.response_file(), "").unwrap();
        File::open(file).unwrap()
    }

    /// Starts the hook as the runner's worker does, with a PATH that a job has extended.
    pub fn start(&self, request: File) -> Child {
        let bin = self.path("_work/_temp/bin");
        fs::create_dir_all(&bin).unwrap();
        let _ = std::os::unix::fs::symlink("/bin/false", bin.join("nspawn-run"));
        let mut hook_call = Command::new("bash");
        hook_call
            .args(["--noprofile", "--norc", "-e", "-o", "pipefail"])
            .arg(hook());
        hook_call.env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
        hook_call.env("NSPAWN_BIND_RO", self.binds);
        hook_call
            .stdin(request)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Calls the hook, waits for its end, and saves the state that it returns.
    pub fn call(&mut self, command: &str, args: &Value) -> Done {
        let done = wait_for_end(self.start(self.request(command, args)));
        if let Some(state) = self.response().get("state") {
            self.state = state.clone();
        }
        done
    }

    /// Runs a script as a step.
    pub fn run(&mut self, script: &str) -> Done {
        self.call("run_script_step", &self.step(script))
    }

    /// Returns the hook's response, or null if it has written none.
    pub fn response(&self) -> Value {
        serde_json::from_slice(&fs::read(self.response_file()).unwrap_or_default())
            .unwrap_or_default()
    }

    /// Adds an executable file to the runner's directories.
    pub fn program(&self, name: &str, text: &str) {
        let file = self.path(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, text).unwrap();
        call("chmod", ["755", file.to_str().unwrap()]).expect(0);
        // Files from archives may belong to any user.
        chown(&file, Some(1001), None).unwrap();
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if let Some(machine) = self.state["machine"].as_str() {
            let _ = Command::new("nspawn-cleanup").arg(machine).status();
        }
        let _ = fs::remove_dir_all(&self.root);
    }
}
