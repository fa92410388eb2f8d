//! QEMU: where it is, and one run of a program in it.

use super::output;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const COMMAND: &str = "qemu-system-arm";
/// A program that runs so long hangs.
const LIMIT: Duration = Duration::from_secs(600);

/// The emulator.
pub struct Emulator {
    path: PathBuf,
    /// Its version, for people.
    pub name: String,
}

/// What a run left.
pub struct Run {
    /// The exit code.
    pub code: i32,
    /// What it printed.
    pub text: String,
}

impl Emulator {
    /// From `TINYFORGE_QEMU`, from PATH, or from the copy that `.ci/run` unpacks.
    pub fn find(place: &Path) -> Result<Emulator, String> {
        let copy = place.join("qemu/usr/bin").join(COMMAND);
        let said = std::env::var_os("TINYFORGE_QEMU").map(PathBuf::from);
        for path in said.into_iter().chain([PathBuf::from(COMMAND), copy]) {
            if let Ok(text) = output(Command::new(&path).arg("--version")) {
                return Ok(Emulator { path, name: text.lines().next().unwrap_or_default().to_string() });
            }
        }
        Err(format!(
            "{COMMAND} is missing: on Debian `apt-get install --no-remove qemu-system-arm`, or name it in TINYFORGE_QEMU"
        ))
    }

    /// Runs a program in `folder` with these arguments, one instruction a nanosecond.
    pub fn run(&self, board: &str, program: &Path, folder: &Path, arguments: &[String]) -> Result<Run, String> {
        let mut semihosting = "enable=on,target=native,arg=program".to_string();
        for argument in arguments {
            semihosting += &format!(",arg={}", argument.replace(',', ",,"));
        }
        let mut command = Command::new(&self.path);
        command.args(["-M", board, "-nographic", "-monitor", "none", "-serial", "null", "-icount", "shift=0"]);
        command.args(["-semihosting-config", &semihosting, "-kernel"]).arg(program).current_dir(folder);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("{}: {e}", self.path.display()))?;
        // A console by semihosting is the one, a C library's standard output the other.
        let readers = [reader(child.stdout.take()), reader(child.stderr.take())];
        let started = Instant::now();
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if started.elapsed() < LIMIT => std::thread::sleep(Duration::from_millis(5)),
                _ => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(format!("{} on {board} runs longer than {} s", program.display(), LIMIT.as_secs()));
                }
            }
        };
        let text: String = readers.into_iter().map(|reader| reader.join().unwrap_or_default()).collect();
        let Some(code) = status.code() else { return Err(format!("the emulator ended with {status}\n{text}")) };
        Ok(Run { code, text })
    }
}

/// Reads a pipe to its end, beside the program.
fn reader(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
