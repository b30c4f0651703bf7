//! nginx and lighttpd in three replicas answer byte for byte as the native programs of the same packages with the same
//! configuration: heads and bodies, as the real curl and as hand-made requests see them. Only the value of `Date` is masked.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod cgi;
mod files;
mod many;
mod raw;
mod requests;

use std::net::SocketAddr;

use quorate_tests::app::Native;
use quorate_tests::documents::Documents;
use quorate_tests::set::Set;
use quorate_tests::web::Server;
use quorate_tests::wire::agree;

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
        let app = server.app(&documents).unwrap();
        let native = server.native(&app, &documents).unwrap();
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
