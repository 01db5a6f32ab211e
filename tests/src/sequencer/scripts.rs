//! The scripts that GitLab Runner generates for the shell bash.

use std::fmt::Write as _;

use super::environment;
use super::job::{Content, Job};

/// The script of the stage `name`; `None` if it is empty, and so not called.
pub fn of_stage(job: &Job, name: &str, builds_dir: &str, status: &str) -> Option<String> {
    if let Some(Content::File(text)) = job.content(name) {
        return Some(text.clone());
    }
    let project_dir = environment::project_dir(builds_dir);
    let own = match job.content(name) {
        Some(Content::Lines(lines)) => lines.clone(),
        _ => Vec::new(),
    };
    let mut lines = generated(name, &project_dir);
    if lines.is_empty() && own.is_empty() {
        return None;
    }
    if lines.is_empty() {
        lines.push(format!("cd {}", quote(&project_dir)));
    }
    lines.extend(own);
    let mut variables = environment::job_variables(job, Some(builds_dir));
    if name == "after_script" {
        variables.push(("CI_JOB_STATUS".to_owned(), status.to_owned()));
    }
    Some(frame(&variables, &lines))
}

// What GitLab Runner itself does in a stage.
fn generated(stage: &str, project_dir: &str) -> Vec<String> {
    let (sources, files) = (quote(project_dir), quote(&format!("{project_dir}.tmp")));
    match stage {
        "prepare_script" => vec![r#"echo "Running on $(hostname) via $(uname -n)...""#.to_owned()],
        "get_sources" => vec![
            format!("mkdir -p {files}"),
            format!("printf '%s' certificate > {files}/CI_SERVER_TLS_CA_FILE"),
            format!("mkdir -p {sources}"),
            format!("cd {sources}"),
        ],
        "clear_worktree" => vec![format!("cd {sources}"), "find . -mindepth 1 -delete".to_owned()],
        "cleanup_file_variables" => vec![format!("rm -f {files}/CI_SERVER_TLS_CA_FILE"), format!("rm -r -f {files}")],
        _ => Vec::new(),
    }
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
fn quote(text: &str) -> String {
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
        let output =
            std::process::Command::new("bash").args(["-c", &format!("eval {}", quote(&twice))]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), text);
    }

    #[test]
    fn empty_stages_are_not_called() {
        let job = Job::new("a").script(&["x"]);
        assert!(of_stage(&job, "after_script", "/b", "success").is_none());
        assert!(of_stage(&job, "build_script", "/b", "success").unwrap().starts_with("#!/usr/bin/env bash\n"));
    }
}
