//! The web servers among the appliances, with the same configuration natively.

use std::net::SocketAddr;

use crate::Error;
use crate::app::{App, Native, replaced};
use crate::documents::Documents;

/// A web server.
#[derive(Clone, Copy, Debug)]
pub enum Server {
    /// nginx as one process.
    Nginx,
    /// nginx with a master and two workers.
    Workers,
    /// lighttpd.
    Lighttpd,
    /// BusyBox, a process for each connection.
    Busybox,
}

impl Server {
    /// Its appliance, with the documents to serve.
    ///
    /// # Errors
    /// When the appliance cannot be read.
    pub fn app(self, documents: &Documents) -> Result<App, Error> {
        let mut app = App::load(match self {
            Server::Nginx => "nginx",
            Server::Workers => "nginx-workers",
            Server::Lighttpd => "lighttpd",
            Server::Busybox => "busybox-httpd",
        })?;
        for document in &documents.all {
            app.add_file(&format!("/srv/www/{}", document.name), &document.path);
        }
        Ok(app)
    }

    /// The same program on the host.
    ///
    /// # Errors
    /// When it does not start.
    pub fn native(self, app: &App, documents: &Documents) -> Result<Native, Error> {
        app.native(|app, address, native| self.arguments(app, documents, address, native))
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
                write(&path, &self.nginx(&config, address, &root, &own, &served)?)?;
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
                write(&path, &replaced(&config, &changes)?)?;
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

fn write(path: &str, text: &str) -> Result<(), Error> {
    std::fs::write(path, text).map_err(|source| Error::Io {
        what: path.to_owned(),
        source,
    })
}
