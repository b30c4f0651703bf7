//! A ready-made appliance of `images/appliances`, run twice: by a replica set, and natively from its own unpacked packages.
//!
//! Both take the same configuration; what must differ (port, directories) is replaced in the text of the file, and each
//! replacement must be found.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_images::Appliance;

use crate::native::{self, NativeError};
use crate::process::Process;
use crate::server::free_address;
use crate::set::Options;
use crate::{Error, repository};

/// Ports that are tried before giving up: another process may take one between its choice and its use.
const TRIES: usize = 5;
/// How long a native server may take until it accepts connections.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// The text of an appliance file, and changes to it.
#[derive(Clone, Debug)]
pub struct App {
    table: toml::Table,
    name: String,
}

impl App {
    /// The appliance `images/appliances/NAME.toml`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn load(name: &str) -> Result<App, Error> {
        let path = appliance_path(name);
        let text = std::fs::read_to_string(&path).map_err(|source| Error::Io {
            what: path.display().to_string(),
            source,
        })?;
        let table = text
            .parse()
            .map_err(|error| Error::Unexpected(format!("{}: {error}", path.display())))?;
        let mut app = App {
            table,
            name: name.to_owned(),
        };
        // The changed appliance is written elsewhere.
        let directory = path.parent().unwrap_or(&path).to_owned();
        for file in app.files() {
            if let Some(source) = file.get_mut("source") {
                let from = source.as_str().map(|text| directory.join(text));
                *source = from.unwrap_or_default().display().to_string().into();
            }
        }
        Ok(app)
    }

    /// The appliance's text now.
    #[must_use]
    pub fn text(&self) -> String {
        self.table.to_string()
    }

    /// A table of the appliance, for example `program`; made if it is not there.
    ///
    /// # Panics
    /// When there is something else of that name.
    pub fn table(&mut self, name: &str) -> &mut toml::Table {
        let entry = self
            .table
            .entry(name)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()));
        match entry {
            toml::Value::Table(table) => table,
            other => panic!("{name} is {other}"),
        }
    }

    /// Puts a file of the host into the image, in place of one of that path that the appliance may give.
    pub fn add_file(&mut self, path: &str, source: &Path) {
        let source = source.display().to_string();
        self.add(path, "source", &source);
    }

    /// Puts `content` into the image, in place of a file of that path that the appliance may give.
    pub fn add_text(&mut self, path: &str, content: &str) {
        self.add(path, "content", content);
    }

    fn add(&mut self, path: &str, kind: &str, value: &str) {
        let file: toml::Table = [("path", path), (kind, value)]
            .into_iter()
            .map(|(key, value)| (key.to_owned(), toml::Value::String(value.to_owned())))
            .collect();
        let files = self.files();
        files.retain(|file| file.get("path").and_then(toml::Value::as_str) != Some(path));
        files.push(toml::Value::Table(file));
    }

    fn files(&mut self) -> &mut Vec<toml::Value> {
        let entry = self
            .table("image")
            .entry("files")
            .or_insert_with(|| toml::Value::Array(Vec::new()));
        match entry {
            toml::Value::Array(files) => files,
            other => panic!("files is {other}"),
        }
    }

    /// The text of a file that the appliance gives inline.
    ///
    /// # Errors
    /// When it gives none of that path.
    pub fn content(&mut self, path: &str) -> Result<String, Error> {
        let name = self.name.clone();
        self.files()
            .iter()
            .find(|file| file.get("path").and_then(toml::Value::as_str) == Some(path))
            .and_then(|file| file.get("content")?.as_str())
            .map(str::to_owned)
            .ok_or_else(|| {
                Error::Unexpected(format!(
                    "{name}: the appliance has no text for {path} in its files"
                ))
            })
    }

    /// Puts the only disk into the file `path` of the host.
    ///
    /// # Errors
    /// When the appliance has no disk.
    pub fn put_disk(&mut self, path: &Path) -> Result<(), Error> {
        let disks = self
            .table
            .get_mut("disk")
            .and_then(|disks| disks.as_array_mut());
        let disk = disks.and_then(|disks| disks.first_mut()?.as_table_mut());
        let disk = disk.ok_or_else(|| Error::Unexpected(format!("{}: no disk", self.name)))?;
        disk.insert("path".to_owned(), path.display().to_string().into());
        Ok(())
    }

    /// The command line.
    ///
    /// # Errors
    /// When the appliance has none.
    pub fn command(&self) -> Result<Vec<String>, Error> {
        self.table
            .get("program")
            .and_then(|program| program.get("command")?.as_array())
            .map(|words| words.iter().filter_map(|word| word.as_str()))
            .map(|words| words.map(str::to_owned).collect())
            .ok_or_else(|| Error::Unexpected(format!("{}: no command", self.name)))
    }

    /// The arguments of a program that takes its address by `-l` and its port by `-p`, as memcached does, with another address.
    ///
    /// # Errors
    /// When there are no such options.
    pub fn listening_at(&self, address: SocketAddr) -> Result<Vec<String>, Error> {
        let mut words = self.command()?.split_off(1);
        for (option, value) in [
            ("-l", address.ip().to_string()),
            ("-p", address.port().to_string()),
        ] {
            let at = words.iter().position(|word| word == option);
            let place = at.and_then(|at| words.get_mut(at + 1));
            *place.ok_or_else(|| Error::Unexpected(format!("{}: no {option}", self.name)))? = value;
        }
        Ok(words)
    }

    /// How to start a set of it.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn options(&self, guest_port: u16) -> Result<Options, Error> {
        let mut table = self.table.clone();
        // The test chooses the host's port.
        table.remove("network");
        Ok(Options::text(&table.to_string())?.publish(guest_port))
    }

    /// Starts the appliance's program on the host and waits until it accepts connections. `arguments` says, for an address and a
    /// directory to write to, with which arguments.
    ///
    /// # Errors
    /// When it does not start.
    pub fn native(
        &self,
        arguments: impl Fn(&App, SocketAddr, &Native) -> Result<Vec<String>, Error>,
    ) -> Result<Native, Error> {
        // Without what tests added to the image: the native program reads that from where it is.
        let appliance = Appliance::load(appliance_path(&self.name)).map_err(NativeError::from)?;
        let root = native::root_of(&appliance)?;
        let mut last = None;
        for _ in 0..TRIES {
            let address = free_address()?;
            let directory = tempfile::tempdir().map_err(|source| Error::Io {
                what: "a temporary directory".to_owned(),
                source,
            })?;
            let mut native = Native {
                process: None,
                address,
                root: root.clone(),
                directory,
            };
            let arguments = arguments(self, address, &native)?;
            let program = self.command()?.into_iter().next().unwrap_or_default();
            let mut command = native::command_of(&root, &program)?;
            command.args(arguments).current_dir("/").env_clear();
            let process = Process::start(command)?;
            let accepts = accepts(&process, address);
            native.process = Some(process);
            match accepts {
                Ok(()) => return Ok(native),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::Unexpected("no free port".to_owned())))
    }
}

fn appliance_path(name: &str) -> PathBuf {
    repository().join(format!("images/appliances/{name}.toml"))
}

/// Waits until something accepts connections at `address`.
fn accepts(process: &Process, address: SocketAddr) -> Result<(), Error> {
    // A refused connection costs a wake-up; waiting for the end of the process is how the time passes between two.
    const BETWEEN: Duration = Duration::from_millis(20);
    let started = std::time::Instant::now();
    loop {
        if TcpStream::connect(address).is_ok() {
            return Ok(());
        }
        match process.wait(BETWEEN) {
            Err(error)
                if started.elapsed() >= quorate_executor::patience::patient(START_TIMEOUT) =>
            {
                return Err(error);
            }
            Err(_) => {}
            Ok(ended) => {
                return Err(Error::Unexpected(format!(
                    "the native server ended: {ended:?}"
                )));
            }
        }
    }
}

/// A native server. It is killed when this is dropped.
pub struct Native {
    process: Option<Process>,
    address: SocketAddr,
    root: PathBuf,
    directory: tempfile::TempDir,
}

impl Native {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its unpacked image.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A directory that it may write to.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Its process id, once it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }
}

/// `text` with every key of `changes` replaced by its value.
///
/// # Errors
/// When one is not there.
pub fn replaced(text: &str, changes: &[(&str, &str)]) -> Result<String, Error> {
    let mut text = text.to_owned();
    let mut seen = BTreeMap::new();
    for (from, to) in changes {
        if !text.contains(from) || seen.insert(*from, ()).is_some() {
            return Err(Error::Unexpected(format!(
                "there is no {from:?} in:\n{text}"
            )));
        }
        text = text.replace(from, to);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn files_and_tables_are_changed_and_the_rest_stays() {
        let mut app = App::load("nginx").unwrap();
        let config = app.content("/etc/nginx/nginx.conf").unwrap();
        assert!(config.contains("listen 80;"));
        assert!(app.content("/no/such/file").is_err());
        app.add_text("/etc/nginx/nginx.conf", "changed\n");
        app.add_file("/srv/www/x", Path::new("/tmp/x"));
        app.table("machine").insert("replicas".into(), 1.into());
        let text = app.text();
        let again = Appliance::parse(&text, Path::new("nginx.toml")).unwrap();
        assert_eq!(again.machine.replicas, 1);
        assert_eq!(app.content("/etc/nginx/nginx.conf").unwrap(), "changed\n");
        assert!(replaced("a b", &[("c", "d")]).is_err());
        assert_eq!(replaced("a b a", &[("a", "x")]).unwrap(), "x b x");
    }
}
