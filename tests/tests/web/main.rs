//! nginx and lighttpd in three replicas answer byte for byte as the native programs of the same packages with the same
//! configuration: heads and bodies, as the real curl and as hand-made requests see them. Only the value of `Date` is masked.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

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
    Lighttpd,
}

impl Server {
    fn app(self) -> App {
        App::load(match self {
            Server::Nginx => "nginx",
            Server::Lighttpd => "lighttpd",
        })
        .unwrap()
    }

    fn config(self) -> &'static str {
        match self {
            Server::Nginx => "/etc/nginx/nginx.conf",
            Server::Lighttpd => "/etc/lighttpd/lighttpd.conf",
        }
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
        let port = address.port();
        let config = app.clone().content(self.config())?;
        let config = match self {
            Server::Nginx => replaced(
                &config,
                &[
                    ("listen 80;", &format!("listen 127.0.0.1:{port};")),
                    ("/srv/www", &served),
                    ("/run/nginx.pid", &format!("{own}/pid")),
                    (
                        "/etc/nginx/mime.types",
                        &format!("{root}/etc/nginx/mime.types"),
                    ),
                    ("http {", &format!("http {{\n{}", temporary(&own))),
                ],
            )?,
            Server::Lighttpd => replaced(
                &config,
                &[
                    ("server.port = 80", &format!("server.port = {port}")),
                    ("0.0.0.0", "127.0.0.1"),
                    ("/srv/www", &served),
                ],
            )?,
        };
        let path = format!("{own}/config");
        std::fs::write(&path, config).unwrap();
        let words = match self {
            Server::Nginx => vec!["-p".to_owned(), own, "-e".to_owned(), "stderr".to_owned()],
            Server::Lighttpd => vec![
                "-D".to_owned(),
                "-m".to_owned(),
                format!("{root}/usr/lib/lighttpd"),
            ],
        };
        let file = match self {
            Server::Nginx => "-c",
            Server::Lighttpd => "-f",
        };
        Ok([words, vec![file.to_owned(), path]].concat())
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
