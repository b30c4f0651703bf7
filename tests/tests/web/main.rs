//! nginx and lighttpd in three replicas answer byte for byte as the native programs of the same packages with the same
//! configuration: heads and bodies, as the real curl and as hand-made requests see them. Only the value of `Date` is masked.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod cgi;
mod files;
mod many;
mod raw;
mod requests;

use std::net::SocketAddr;

use quorate_tests::Error;
use quorate_tests::app::{App, Native, replaced};
use quorate_tests::documents::Documents;
use quorate_tests::set::Set;

/// A web server.
#[derive(Clone, Copy, Debug)]
enum Server {
    Nginx,
    /// nginx with a master and two workers.
    Workers,
    Lighttpd,
    /// BusyBox, a process for each connection.
    Busybox,
}

impl Server {
    fn app(self) -> App {
        App::load(match self {
            Server::Nginx => "nginx",
            Server::Workers => "nginx-workers",
            Server::Lighttpd => "lighttpd",
            Server::Busybox => "busybox-httpd",
        })
        .unwrap()
    }

    /// Arguments for the native server that serves `documents`.
    fn arguments(
        self,
        app: &App,
        documents: &Documents,
        address: SocketAddr,
        native: &Native,
    ) -> Result<Vec<String>, Error> {
        let root = native.root().display().to_string();
        let own = native.directory().display().to_string();
        let served = documents.directory.display().to_string();
        let path = format!("{own}/config");
        let words = match self {
            Server::Nginx | Server::Workers => {
                let config = app.clone().content("/etc/nginx/nginx.conf")?;
                std::fs::write(&path, self.nginx(&config, address, &root, &own, &served)?).unwrap();
                vec!["-p", &own, "-e", "stderr", "-c", &path]
            }
            Server::Lighttpd => {
                let config = app.clone().content("/etc/lighttpd/lighttpd.conf")?;
                let port = format!("server.port = {}", address.port());
                let changes = [
                    ("server.port = 80", port.as_str()),
                    ("0.0.0.0", "127.0.0.1"),
                    ("/srv/www", &served),
                ];
                std::fs::write(&path, replaced(&config, &changes)?).unwrap();
                return Ok(
                    ["-D", "-m", &format!("{root}/usr/lib/lighttpd"), "-f", &path]
                        .map(str::to_owned)
                        .to_vec(),
                );
            }
            Server::Busybox => {
                let words = app.command()?.join("\n");
                let changes = [("\n80\n", format!("\n{address}\n")), ("/srv/www", served)];
                let changes = changes.each_ref().map(|(from, to)| (*from, to.as_str()));
                let words = replaced(&words, &changes)?;
                return Ok(words.lines().skip(1).map(str::to_owned).collect());
            }
        };
        Ok(words.into_iter().map(str::to_owned).collect())
    }

    /// nginx' configuration for the native server.
    fn nginx(
        self,
        config: &str,
        address: SocketAddr,
        root: &str,
        own: &str,
        served: &str,
    ) -> Result<String, Error> {
        let listen = format!("listen {address};");
        let pid = format!("{own}/pid");
        let types = format!("{root}/etc/nginx/mime.types");
        let http = format!("http {{\n{}", temporary(own));
        let mut changes = vec![
            ("listen 80;", listen.as_str()),
            ("/srv/www", served),
            ("/run/nginx.pid", &pid),
            ("/etc/nginx/mime.types", &types),
            ("http {", &http),
        ];
        if let Server::Workers = self {
            // Another user could not read the documents of everybody who runs the tests.
            changes.push(("user www-data;", "user root;"));
        }
        replaced(config, &changes)
    }
}

/// Where the native nginx puts its temporary files: the image's directories are not its own here.
fn temporary(own: &str) -> String {
    ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("  {kind}_temp_path {own}/{kind};\n"))
        .concat()
}

/// A native server and a set of three replicas with random layouts, which serve the same documents.
struct Both {
    server: Server,
    documents: Documents,
    native: Native,
    set: Set,
}

impl Both {
    fn start(server: Server) -> Both {
        let documents = Documents::make().unwrap();
        let mut app = server.app();
        for document in &documents.all {
            app.add_file(&format!("/srv/www/{}", document.name), &document.path);
        }
        let native = app
            .native(|app, address, native| server.arguments(app, &documents, address, native))
            .unwrap();
        let set = app
            .options(80)
            .unwrap()
            .replicas(3)
            .arguments(&["--layout", "random"])
            .start()
            .unwrap();
        Both {
            server,
            documents,
            native,
            set,
        }
    }

    /// The native one's and the set's address.
    fn addresses(&self) -> [SocketAddr; 2] {
        [self.native.address(), self.set.address()]
    }

    /// All replicas are still there, and nobody was outvoted meanwhile.
    fn finish(self) {
        let status = self.set.status().unwrap();
        assert_eq!(status["state"], "running", "{status:#}");
        assert_eq!(status["running"], 3, "{status:#}");
        assert!(self.set.lines_with("verdict").is_empty());
        let ended = self.set.stop().unwrap();
        assert_eq!(ended.code, 0, "{}", ended.stderr);
    }
}

/// The two answers are the same; where they differ is shown.
fn agree(what: &str, native: &[u8], set: &[u8]) {
    use quorate_tests::wire::shown;
    if native == set {
        return;
    }
    let at = native.iter().zip(set).take_while(|(a, b)| a == b).count();
    panic!(
        "{what}: {} and {} bytes differ from byte {at} on\n--- native:\n{}\n--- set:\n{}",
        native.len(),
        set.len(),
        shown(&native[at.saturating_sub(400)..]),
        shown(&set[at.saturating_sub(400)..])
    );
}
