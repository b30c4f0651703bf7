//! The command with bad input: each mistake has a clear message and its own exit code. No guest program runs here.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output};

use quorate_executor::exit::ExitCode;

/// A place of its own for each test: appliance files, images, sockets.
struct Place {
    directory: tempfile::TempDir,
}

const GOOD: &str = "version = 1\nname = \"good\"\n[image]\ndirectory = \"root\"\n[program]\ncommand = [\"/bin/program\"]\n";

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("root/bin/program");
        std::fs::create_dir_all(program.parent().unwrap()).unwrap();
        std::fs::write(&program, "not a program").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap();
        Place { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn file(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name).to_str().unwrap().to_owned()
    }

    fn quorate(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_quorate"))
            .args(arguments)
            .env("XDG_RUNTIME_DIR", self.directory.path())
            .env("QUORATE_CACHE", self.path("cache"))
            .env_remove("RUST_LOG")
            .output()
            .unwrap()
    }

    /// Runs the command, which must fail with this code and say all of these.
    fn refused(&self, arguments: &[&str], code: ExitCode, says: &[&str]) {
        let output = self.quorate(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            output.status.code(),
            Some(code as i32),
            "{arguments:?}: {stderr}"
        );
        for words in says {
            assert!(
                stderr.contains(words),
                "{arguments:?} does not say {words:?}: {stderr}"
            );
        }
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
}

#[test]
fn bad_command_lines() {
    let place = Place::new();
    let good = place.file("good.toml", GOOD);
    place.refused(&[], ExitCode::Usage, &["Usage"]);
    place.refused(&["run"], ExitCode::Usage, &["APPLIANCE"]);
    for replicas in ["0", "10", "many"] {
        place.refused(
            &["run", &good, "--replicas", replicas],
            ExitCode::Usage,
            &["--replicas", replicas],
        );
    }
    place.refused(
        &["run", &good, "--publish", "6379"],
        ExitCode::Usage,
        &["6379", "[ADDR:]HOST:GUEST"],
    );
    place.refused(
        &["run", &good, "--memory", "lots"],
        ExitCode::Usage,
        &["lots"],
    );
    place.refused(
        &["run", &good, "--memory", "1M"],
        ExitCode::Usage,
        &["too little memory", "32M"],
    );
    place.refused(
        &["run", &good, "--memory", "33M"],
        ExitCode::Usage,
        &["multiple of 2M"],
    );
    place.refused(
        &["run", &good, "--layout", "odd"],
        ExitCode::Usage,
        &["odd", "same", "random"],
    );
    place.refused(
        &["inject", "0", "melt"],
        ExitCode::Usage,
        &["melt", "flip-register"],
    );
    place.refused(&["--log", "===", "doctor"], ExitCode::Usage, &["--log"]);
}

#[test]
fn bad_appliances_name_file_line_and_key() {
    let place = Place::new();
    let none = place.path("none.toml");
    place.refused(
        &["run", none.to_str().unwrap()],
        ExitCode::Appliance,
        &["none.toml"],
    );
    let unknown = place.file("unknown.toml", &GOOD.replace("command =", "comand ="));
    place.refused(
        &["run", &unknown],
        ExitCode::Appliance,
        &["unknown.toml:6", "comand"],
    );
    let broken = place.file("broken.toml", "version = 1\nname = \n");
    place.refused(&["run", &broken], ExitCode::Appliance, &["broken.toml:2"]);
    let ten = place.file("ten.toml", &format!("{GOOD}[machine]\nreplicas = 10\n"));
    place.refused(
        &["run", &ten],
        ExitCode::Appliance,
        &["ten.toml:8", "replicas"],
    );
    let little = place.file(
        "little.toml",
        &format!("{GOOD}[machine]\nmemory = \"4M\"\n"),
    );
    place.refused(
        &["run", &little],
        ExitCode::Appliance,
        &["little.toml", "memory"],
    );
    let port = place.file(
        "port.toml",
        &format!("{GOOD}[network]\npublish = [\"x:1\"]\n"),
    );
    place.refused(
        &["run", &port],
        ExitCode::Appliance,
        &["port.toml", "publish", "x"],
    );
    let window = place.file(
        "window.toml",
        &format!("{GOOD}[policy]\nwindow_bytes = \"64K\"\n"),
    );
    place.refused(&["run", &window], ExitCode::Appliance, &["window"]);
}

#[test]
fn bad_images() {
    let place = Place::new();
    let ready_made = "version = 1\nname = \"ready\"\n[image]\nfile = \"image.qimg\"\n[program]\ncommand = [\"/bin/program\"]\n";
    let appliance = place.file("ready.toml", ready_made);
    place.refused(
        &["run", &appliance],
        ExitCode::Image,
        &["image.qimg", "no such image"],
    );
    place.file("image.qimg", "something else entirely");
    place.refused(&["run", &appliance], ExitCode::Image, &["image.qimg"]);

    let built = place.quorate(&["build", &place.file("good.toml", GOOD)]);
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    let image = String::from_utf8(built.stdout).unwrap();
    let bytes = std::fs::read(image.trim()).unwrap();
    std::fs::write(place.path("image.qimg"), &bytes[..bytes.len() - 4096]).unwrap();
    place.refused(
        &["run", &appliance],
        ExitCode::Image,
        &["image.qimg", "truncated"],
    );
    let mut damaged = bytes;
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    std::fs::write(place.path("image.qimg"), &damaged).unwrap();
    place.refused(
        &["run", &appliance],
        ExitCode::Image,
        &["image.qimg", "damaged"],
    );
}

#[test]
fn a_taken_port_and_a_taken_socket() {
    let place = Place::new();
    let good = place.file("good.toml", GOOD);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    place.refused(
        &["run", &good, "--publish", &format!("{port}:80")],
        ExitCode::Port,
        &[&port, "in use"],
    );
    assert!(
        !place.path("quorate/good.sock").exists(),
        "a failed start leaves no socket"
    );

    let file = place.file("precious", "precious");
    place.refused(
        &["run", &good, "--control", &file],
        ExitCode::Control,
        &["precious", "no socket"],
    );
}

#[test]
fn with_no_set_running_every_question_says_so() {
    let place = Place::new();
    let directory = place.path("quorate");
    for arguments in [
        &["status"][..],
        &["stop"],
        &["kill", "0"],
        &["inject", "0", "crash"],
    ] {
        place.refused(
            arguments,
            ExitCode::Control,
            &["no replica set is running", directory.to_str().unwrap()],
        );
    }
    let nowhere = place.path("nowhere.sock");
    place.refused(
        &["status", "--control", nowhere.to_str().unwrap()],
        ExitCode::Control,
        &["nowhere.sock"],
    );
}

#[test]
fn the_help_documents_the_exit_codes() {
    let place = Place::new();
    let output = place.quorate(&["--help"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for code in ExitCode::ALL {
        assert!(
            text.contains(code.meaning()),
            "{code:?} is not in the help: {text}"
        );
    }
}

#[test]
fn the_doctor_examines_this_host() {
    let place = Place::new();
    let output = place.quorate(&["doctor", "--json"]);
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let works = findings["embedded_guest"].as_bool().unwrap();
    assert_eq!(output.status.success(), works);
    let text = String::from_utf8(place.quorate(&["doctor"]).stdout).unwrap();
    assert!(text.contains("Embedded guest"), "{text}");
}
