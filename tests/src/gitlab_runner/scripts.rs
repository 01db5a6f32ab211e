//! Scripts that GitLab Runner generates for the shell bash.

use std::fmt::Write as _;

use super::received::{Content, ReceivedJob};
use super::runner::Settings;
use super::{archives, environment, sources};

/// Stages that do not begin in the directory of the project.
const WITHOUT_PROJECT_DIR: [&str; 4] = [
    "prepare_script",
    "get_sources",
    "clear_worktree",
    "cleanup_file_variables",
];

/// Returns the script of a stage, or `None` if the stage is empty.
///
/// A runner does not call an empty stage.
pub fn generate(
    job: &ReceivedJob,
    stage: &str,
    settings: &Settings,
    status: &str,
) -> Option<String> {
    let own_lines = match job.content(stage) {
        Some(Content::File(text)) => return Some(text.clone()),
        Some(Content::Lines(lines)) => lines.clone(),
        None => Vec::new(),
    };
    let project_dir = environment::project_dir(job, &settings.builds);
    let runner_lines = runner_lines(job, stage, &project_dir, settings);
    if runner_lines.is_empty() && own_lines.is_empty() {
        return None;
    }
    let mut lines = Vec::new();
    if stage != "cleanup_file_variables" {
        lines.extend(file_variables(job, &project_dir));
    }
    if !WITHOUT_PROJECT_DIR.contains(&stage) {
        lines.push(format!("cd {}", quote(&project_dir)));
    }
    lines.extend(runner_lines);
    if job.is_from_server && stage == "after_script" {
        lines.push(command(&["echo", "Running after script..."]));
    }
    for line in own_lines {
        // The log of a job that a server sends shows each command before it runs.
        if job.is_from_server {
            let shown = match line.split_once('\n') {
                Some((first, _)) => format!("{first} # collapsed multi-line command"),
                None => line.clone(),
            };
            lines.push(command(&["echo", &format!("\x1b[32;1m$ {shown}\x1b[0;m")]));
        }
        lines.push(line);
    }
    let mut variables = environment::job_variables(job, Some(&settings.builds));
    variables.retain(|(name, _)| !job.files.contains(name));
    if stage == "after_script" {
        variables.push(("CI_JOB_STATUS".to_owned(), status.to_owned()));
    }
    Some(frame(&variables, &lines))
}

/// Returns the lines that GitLab Runner itself adds to a stage.
fn runner_lines(
    job: &ReceivedJob,
    stage: &str,
    project_dir: &str,
    settings: &Settings,
) -> Vec<String> {
    let cache_dir = &settings.cache;
    match stage {
        "prepare_script" => vec![format!(
            r#"echo "Running on $(hostname) via {}...""#,
            settings.hostname
        )],
        "get_sources" => get_sources(job, project_dir),
        "clear_worktree" => sources::clear(project_dir),
        "restore_cache" => archives::restore(job, project_dir, cache_dir),
        "download_artifacts" => archives::download(job),
        "archive_cache" => archives::archive(job, project_dir, cache_dir, true),
        "archive_cache_on_failure" => archives::archive(job, project_dir, cache_dir, false),
        "upload_artifacts_on_success" => archives::upload(job, true),
        "upload_artifacts_on_failure" => archives::upload(job, false),
        "cleanup_file_variables" => {
            let files = quote(&files_dir(project_dir));
            vec![
                format!("rm -f {files}/CI_SERVER_TLS_CA_FILE"),
                format!("rm -r -f {files}"),
            ]
        }
        _ => Vec::new(),
    }
}

fn get_sources(job: &ReceivedJob, project_dir: &str) -> Vec<String> {
    let files = quote(&files_dir(project_dir));
    let mut lines = vec![
        format!("mkdir -p {files}"),
        format!("printf '%s' certificate > {files}/CI_SERVER_TLS_CA_FILE"),
    ];
    if job.is_from_server {
        lines.extend(sources::lines(job, project_dir));
    } else {
        let project_dir = quote(project_dir);
        lines.push(format!("mkdir -p {project_dir}"));
        lines.push(format!("cd {project_dir}"));
    }
    lines
}

/// Returns the lines that write the variables of the type "file", and export the paths.
fn file_variables(job: &ReceivedJob, project_dir: &str) -> Vec<String> {
    let directory = files_dir(project_dir);
    let mut lines = Vec::new();
    for name in &job.files {
        let path = quote(&format!("{directory}/{name}"));
        let value = job.value(name).unwrap_or_default();
        lines.push(command(&["mkdir", "-p", &directory]));
        lines.push(format!("{} > {path}", command(&["printf", "%s", value])));
        lines.push(format!("export {name}={path}"));
    }
    lines
}

/// Returns the directory of temporary files that belong to the project.
fn files_dir(project_dir: &str) -> String {
    format!("{project_dir}.tmp")
}

/// Returns a command line for bash, with quotes where they are necessary.
pub fn command(words: &[&str]) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./%:=,+".contains(&byte);
    let quoted = words.iter().map(|word| {
        if !word.is_empty() && word.bytes().all(is_plain) {
            (*word).to_owned()
        } else {
            quote(word)
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

fn frame(variables: &[(String, String)], lines: &[String]) -> String {
    let mut inner = String::new();
    for (name, value) in variables {
        let _ = writeln!(inner, "export {name}={}", quote(value));
    }
    for line in lines {
        let _ = writeln!(inner, "{line}");
    }
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

/// Returns `text` as a word of bash, always in the form `$'…'`.
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
    use crate::job::Job;

    #[test]
    fn bash_unquotes_what_is_quoted() {
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
        let job = ReceivedJob::without_server(&Job::new("a").script(&["x"]));
        let settings = Settings {
            builds: "/b".to_owned(),
            cache: "/c".to_owned(),
            hostname: "h".to_owned(),
        };
        assert!(generate(&job, "after_script", &settings, "success").is_none());
        assert!(
            generate(&job, "build_script", &settings, "success")
                .unwrap()
                .starts_with("#!/usr/bin/env bash\n")
        );
    }
}
