//! The scripts that GitLab Runner generates for the shell bash.

use std::fmt::Write as _;

use super::job::{Content, Job};
use super::runner::Directories;
use super::{archives, environment, sources};

/// The script of the stage `name`; `None` if it is empty, and so not called.
pub fn of_stage(job: &Job, name: &str, directories: &Directories, status: &str) -> Option<String> {
    if let Some(Content::File(text)) = job.content(name) {
        return Some(text.clone());
    }
    let project_dir = environment::project_dir(job, &directories.builds);
    let own = match job.content(name) {
        Some(Content::Lines(lines)) => lines.clone(),
        _ => Vec::new(),
    };
    let of_runner = generated(job, name, &project_dir, &directories.cache);
    if of_runner.is_empty() && own.is_empty() {
        return None;
    }
    let is_last = name == "cleanup_file_variables";
    let mut lines = if is_last {
        Vec::new()
    } else {
        file_variables(job, &project_dir)
    };
    if !has_own_way(name) {
        lines.push(format!("cd {}", quote(&project_dir)));
    }
    lines.extend(of_runner);
    lines.extend(own.into_iter().flat_map(|line| shown(job, line)));
    let mut variables = environment::job_variables(job, Some(&directories.builds));
    variables.retain(|(name, _)| !job.files.contains(name));
    if name == "after_script" {
        variables.push(("CI_JOB_STATUS".to_owned(), status.to_owned()));
    }
    Some(frame(&variables, &lines))
}

// The stages that don't begin in the project's directory.
fn has_own_way(stage: &str) -> bool {
    [
        "prepare_script",
        "get_sources",
        "clear_worktree",
        "cleanup_file_variables",
    ]
    .contains(&stage)
}

// What GitLab Runner itself does in a stage.
fn generated(job: &Job, stage: &str, project_dir: &str, cache_dir: &str) -> Vec<String> {
    let (plain, files) = (quote(project_dir), quote(&format!("{project_dir}.tmp")));
    match stage {
        "prepare_script" => vec![r#"echo "Running on $(hostname) via $(uname -n)...""#.to_owned()],
        "get_sources" => {
            let certificate = [
                format!("mkdir -p {files}"),
                format!("printf '%s' certificate > {files}/CI_SERVER_TLS_CA_FILE"),
            ];
            let sources = if job.sent.is_null() {
                vec![format!("mkdir -p {plain}"), format!("cd {plain}")]
            } else {
                sources::lines(job, project_dir)
            };
            certificate.into_iter().chain(sources).collect()
        }
        "clear_worktree" => sources::clear(project_dir),
        "restore_cache" => archives::restore(job, project_dir, cache_dir),
        "download_artifacts" => archives::download(job),
        "archive_cache" => archives::archive(job, project_dir, cache_dir, true),
        "archive_cache_on_failure" => archives::archive(job, project_dir, cache_dir, false),
        "upload_artifacts_on_success" => archives::upload(job, true),
        "upload_artifacts_on_failure" => archives::upload(job, false),
        "cleanup_file_variables" => vec![
            format!("rm -f {files}/CI_SERVER_TLS_CA_FILE"),
            format!("rm -r -f {files}"),
        ],
        _ => Vec::new(),
    }
}

// Each script writes them, and exports where they are.
fn file_variables(job: &Job, project_dir: &str) -> Vec<String> {
    let directory = format!("{project_dir}.tmp");
    let lines = job.files.iter().flat_map(|name| {
        let (path, value) = (
            format!("{directory}/{name}"),
            job.value(name).unwrap_or_default(),
        );
        [
            command(&["mkdir", "-p", &directory]),
            format!("{} > {}", command(&["printf", "%s", value]), quote(&path)),
            format!("export {name}={}", quote(&path)),
        ]
    });
    lines.collect()
}

// The log of a job that GitLab sent shows what is run.
fn shown(job: &Job, line: String) -> Vec<String> {
    let shows =
        (!job.sent.is_null()).then(|| command(&["echo", &format!("\x1b[32;1m$ {line}\x1b[0;m")]));
    shows.into_iter().chain([line]).collect()
}

/// A command line.
pub fn command(words: &[&str]) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./%:=,+".contains(&byte);
    let quoted = words.iter().map(
        |word| match !word.is_empty() && word.bytes().all(is_plain) {
            true => (*word).to_owned(),
            false => quote(word),
        },
    );
    quoted.collect::<Vec<_>>().join(" ")
}

fn frame(variables: &[(String, String)], lines: &[String]) -> String {
    let mut inner = String::new();
    for (name, value) in variables {
        let _ = writeln!(inner, "export {name}={}", quote(value));
    }
    lines.iter().for_each(|line| inner += &format!("{line}\n"));
    format!(
        "#!/usr/bin/env bash\n\n\
         trap 'exit 1' TERM\n\n\
         case \"$(set -o)\" in *\"pipefail\"*) set -o pipefail;; esac; set -o errexit\n\
         set +o noclobber\n\
         (trap 'exit 1' TERM; eval {}) < /dev/null\n\
         exit 0\n",
        quote(&inner)
    )
}

/// `text` as a word of bash, always in the form `$'…'`.
pub fn quote(text: &str) -> String {
    let mut word = String::from("$'");
    for byte in text.bytes() {
        match byte {
            b'\n' => word += r"\n",
            b'\'' => word += r"\'",
            b'\\' => word += r"\\",
            b' '..=b'~' => word.push(byte.into()),
            _ => drop(write!(word, r"\x{byte:02x}")),
        }
    }
    word + "'"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bash_reads_what_was_quoted() {
        let text = "a'b\\c\n$HOME `x` \"\u{e4}\u{1}\t!";
        let twice = format!("printf %s {}", quote(text));
        let output = std::process::Command::new("bash")
            .args(["-c", &format!("eval {}", quote(&twice))])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), text);
    }

    #[test]
    fn empty_stages_are_not_called() {
        let job = Job::new("a").script(&["x"]);
        let directories = Directories {
            builds: "/b".to_owned(),
            cache: "/c".to_owned(),
        };
        assert!(of_stage(&job, "after_script", &directories, "success").is_none());
        assert!(
            of_stage(&job, "build_script", &directories, "success")
                .unwrap()
                .starts_with("#!/usr/bin/env bash\n")
        );
    }
}
