//! Images from OCI layouts and `docker save` archives, which the tests put together themselves.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::path::PathBuf;

use quorate_images::{Appliance, BuildError, BuildOptions, BuiltImage, build, cached};
use serde_json::{Value, json};
use support::oci::{Entry, Layer, Layout, archive, docker_save, gzip, zstd};
use support::{Image, inode, oci, text, view};
use tempfile::TempDir;

struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self {
            dir: TempDir::new().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn appliance(&self, image: &str, program: &str) -> Appliance {
        let text = format!("version = 1\nname = \"t\"\n[image]\n{image}\n{program}");
        Appliance::parse(&text, &self.path("t.toml")).unwrap()
    }

    fn build(&self, image: &str, program: &str) -> Result<BuiltImage, BuildError> {
        let options = BuildOptions::new(self.path("cache"));
        build(&self.appliance(image, program), &options)
    }

    /// Builds a layout of these layers; what comes of it, or the error.
    fn layers(&self, layers: Vec<Vec<u8>>) -> Result<Image, String> {
        let layout = Layout::new(layers.into_iter().map(Layer::plain).collect(), process());
        let path = self.path("layout");
        let _ = fs::remove_dir_all(&path);
        layout.write(&path);
        let built = self.build("oci = \"layout\"", "");
        built
            .map(|built| view(&built.path))
            .map_err(|error| error.to_string())
    }
}

const TAR: &str = "oci = \"image.tar\"";

fn process() -> Value {
    json!({ "Cmd": ["/bin/t"] })
}

fn base() -> Vec<u8> {
    archive(&[
        Entry::dir("bin/", 0o755),
        Entry::file("bin/t", 0o755, "program"),
        Entry::file("bin/u", 0o755, "other"),
        Entry::file(
            "etc/passwd",
            0o644,
            "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n",
        ),
        Entry::file(
            "etc/group",
            0o644,
            "root:x:0:\nweb:x:34:\nlog:x:40:web,root\nlate:x:39:web\n",
        ),
        Entry::file("srv/a", 0o644, "a"),
        Entry::file("srv/sub/b", 0o644, "b"),
    ])
}

#[test]
fn the_same_image_in_every_form() {
    let bench = Bench::new();
    let upper = archive(&[
        Entry::file("srv/a", 0o600, "upper"),
        Entry::symlink("srv/l", "a"),
    ]);
    let mut digests = Vec::new();
    let forms: [fn(Vec<u8>) -> Layer; 4] = [
        Layer::plain,
        |tar| Layer::packed(&tar, gzip(&tar)),
        |tar| Layer::packed(&tar, zstd(&tar)),
        // Several frames with one between that is to be skipped, as compressors in pieces make them.
        |tar| {
            let (a, b) = tar.split_at(700);
            let skipped = b"\x5a\x2a\x4d\x18\x03\0\0\0abc".to_vec();
            Layer::packed(&tar, [zstd(a), skipped, zstd(b)].concat())
        },
    ];
    for form in forms {
        let layers = vec![form(base()), form(upper.clone())];
        let layout = Layout::new(layers, process());
        layout.write(&bench.path("layout"));
        layout.write_archive(&bench.path("image.tar"));
        fs::write(bench.path("saved.tar"), docker_save(&layout, &["a/t:1"])).unwrap();
        fs::write(
            bench.path("saved.tar.gz"),
            gzip(&docker_save(&layout, &["a/t:1"])),
        )
        .unwrap();
        for source in ["layout", "image.tar", "saved.tar", "saved.tar.gz"] {
            // A cache of its own for each, so that all are built.
            let options = BuildOptions::new(bench.path(&format!("cache-{}", digests.len())));
            let appliance = bench.appliance(&format!("oci = \"{source}\""), "");
            let built = build(&appliance, &options).unwrap();
            assert!(!built.cached);
            let image = view(&built.path);
            assert_eq!(text(&image, "/srv/l"), "upper");
            assert_eq!(built.program.command, ["/bin/t"]);
            digests.push(built.digest);
            assert!(build(&appliance, &options).unwrap().cached);
            let found = cached(&appliance, &options.cache_dir).unwrap().unwrap();
            assert_eq!((found.digest, found.program), (built.digest, built.program));
        }
    }
    assert_eq!(digests.len(), 16);
    assert!(digests.iter().all(|digest| *digest == digests[0]));
}

#[test]
fn layers_lie_over_each_other() {
    let bench = Bench::new();
    let image = bench
        .layers(vec![
            base(),
            archive(&[
                // A whiteout means layers below, wherever it stands: `srv/sub` of this layer stays.
                Entry::file("srv/sub/new", 0o644, "new"),
                Entry::file("srv/sub/.wh..wh..opq", 0o644, ""),
                Entry::file("bin/.wh.u", 0o644, ""),
                Entry::file("bin/.wh.never-was", 0o644, ""),
                Entry::file("srv/.wh..wh.plnk", 0o644, ""),
                // A directory in place of a file, and a file in place of a directory.
                Entry::dir("srv/a", 0o700),
                Entry::file("var", 0o644, "a file"),
            ]),
            archive(&[
                Entry::dir("./", 0o711),
                Entry::dir("srv", 0o750),
                Entry::dir("var", 0o755),
                Entry::symlink("lib", "srv/sub"),
                Entry::file("lib/through", 0o644, "the link"),
                Entry::hard_link("hard", "srv/sub/new"),
                Entry::hard_link("hard", "hard"),
                Entry::file("srv/a", 0o644, "again"),
            ]),
        ])
        .unwrap();
    let list = |path: &str| support::list(&image, path);
    assert_eq!(list("/bin"), ["t"]);
    assert_eq!(list("/srv/sub"), ["new", "through"]);
    assert_eq!(list("/srv"), ["a", "sub"]);
    assert_eq!(text(&image, "/srv/a"), "again");
    assert_eq!(text(&image, "/hard"), "new");
    assert_eq!(inode(&image, "/hard").nlink, 2);
    assert!(inode(&image, "/var").is_dir());
    assert_eq!(inode(&image, "/srv").mode & 0o7777, 0o750);
    assert_eq!(inode(&image, "/").mode & 0o7777, 0o711);
    // What the image brings is kept, what every root needs is added.
    assert!(text(&image, "/etc/passwd").contains("web:x:33:34"));
    assert_eq!(text(&image, "/etc/hostname"), "t\n");
}

#[test]
fn nothing_gets_out_of_the_root() {
    let bench = Bench::new();
    let with = |entries: &[Entry]| {
        let base = archive(&[
            Entry::file("bin/t", 0o755, ""),
            Entry::file("etc/passwd", 0o644, ""),
        ]);
        bench.layers(vec![base, archive(entries)])
    };
    for name in ["../escaped", "a/../../escaped", "/../escaped", "a/..", ".."] {
        let message = with(&[Entry::file(name, 0o644, "x")]).unwrap_err();
        assert!(
            message.contains("not a path that an image can hold"),
            "{name}: {message}"
        );
    }
    for name in [".wh...", "a/.wh..", ".wh.", "../.wh.etc", "../.wh..wh..opq"] {
        let message = with(&[Entry::file(name, 0o644, "")]).unwrap_err();
        assert!(
            message.contains("not a path that an image can hold"),
            "{name}: {message}"
        );
    }
    // Links that would lead out on a host lead to the image's own root.
    let image = with(&[
        Entry::symlink("up", "../../../.."),
        Entry::file("up/one", 0o644, "1"),
        Entry::symlink("abs", "/etc"),
        Entry::file("abs/two", 0o644, "2"),
        Entry::hard_link("three", "../../../etc/two"),
        Entry::hard_link("four", "/etc/two"),
        Entry::device("sda", 8, 0),
    ])
    .unwrap();
    assert_eq!(text(&image, "/one"), "1");
    assert_eq!(text(&image, "/etc/two"), "2");
    assert_eq!(
        (text(&image, "/three"), text(&image, "/four")),
        ("2".into(), "2".into())
    );
    // A device is an inode of the image, and nothing of the host.
    assert_eq!(inode(&image, "/sda").mode & 0o170_000, 0o060_000);
    assert!(!bench.path("escaped").exists());
    let message = with(&[Entry::hard_link("x", "../../../../etc/shadow")]).unwrap_err();
    assert!(
        message.contains("which is not a file of the image"),
        "{message}"
    );
    let message = with(&[
        Entry::symlink("loop", "loop2"),
        Entry::symlink("loop2", "loop"),
        Entry::file("loop/x", 0o644, ""),
    ])
    .unwrap_err();
    assert!(message.contains("too many symbolic links"), "{message}");
    let message = with(&[Entry::file("bin/t/x", 0o644, "")]).unwrap_err();
    assert!(message.contains("not a directory"), "{message}");

    // Parts of a layout that lie elsewhere.
    let layout = Layout::new(vec![Layer::plain(base())], process());
    let path = bench.path("layout");
    let _ = fs::remove_dir_all(&path);
    layout.write(&path);
    let blob = path.join(layout.layer_blob(0));
    fs::rename(&blob, bench.path("outside")).unwrap();
    std::os::unix::fs::symlink(bench.path("outside"), &blob).unwrap();
    let message = bench.build("oci = \"layout\"", "").unwrap_err().to_string();
    assert!(message.contains("leads out of the directory"), "{message}");
    let saved = docker_save(&layout, &[]);
    for (from, to) in [
        ("layers/0/layer.tar", "../../../../etc/x"),
        ("layers/0/layer.tar", "/etc/passwd"),
    ] {
        let changed = oci::edit_member(&saved, "manifest.json", from, to);
        fs::write(bench.path("image.tar"), changed).unwrap();
        let message = bench.build(TAR, "").unwrap_err().to_string();
        assert!(message.contains("leads out of the archive"), "{message}");
    }
}

#[test]
fn what_the_image_says_of_its_program() {
    let bench = Bench::new();
    let save = |process: Value| {
        let layout = Layout::new(vec![Layer::plain(base())], process);
        layout.write_archive(&bench.path("image.tar"));
    };
    save(json!({
        "User": "web",
        "Env": ["PATH=/sbin:/bin", "A=1", "B=x=y"],
        "Entrypoint": ["t", "--flag"],
        "Cmd": ["word"],
        "WorkingDir": "/srv",
    }));
    let program = bench.build(TAR, "").unwrap().program;
    assert_eq!(program.command, ["/bin/t", "--flag", "word"]);
    assert_eq!(
        (program.uid, program.gid, program.gids),
        (33, 34, vec![39, 40])
    );
    assert_eq!(program.cwd, "/srv");
    let env: Vec<String> = program
        .env
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    assert_eq!(env, ["A=1", "B=x=y", "HOME=/srv", "PATH=/sbin:/bin"]);

    // The appliance goes before the image, variable by variable.
    let own = "[program]\ncommand = [\"/bin/u\"]\ncwd = \"/\"\nuser = \"7:late\"\nenv = { A = \"2\", HOME = \"/h\" }\ngroups = [\"log\", 5]\n";
    let program = bench.build(TAR, own).unwrap().program;
    assert_eq!(program.command, ["/bin/u"]);
    assert_eq!(
        (program.uid, program.gid, program.gids),
        (7, 39, vec![5, 40])
    );
    assert_eq!(program.cwd, "/");
    assert_eq!(
        (program.env["A"].as_str(), program.env["B"].as_str()),
        ("2", "x=y")
    );
    assert_eq!(program.env["HOME"], "/h");
    let program = bench.build(TAR, "[program]\nuid = 5\n").unwrap().program;
    assert_eq!((program.uid, program.gid), (5, 0));

    save(json!({ "User": "33:40", "Cmd": ["./bin/../bin/t"] }));
    let program = bench.build(TAR, "").unwrap().program;
    assert_eq!((program.uid, program.gid, program.gids), (33, 40, vec![]));
    assert_eq!(program.command, ["/./bin/../bin/t"]);

    for (process, own, part) in [
        (json!({}), "", "the image names no program: write `command`"),
        (Value::Null, "", "the image names no program"),
        (
            json!({ "Cmd": ["no"] }),
            "",
            "no: no such program in the image's PATH (/usr/local/sbin",
        ),
        (
            json!({ "Cmd": ["/srv/a"] }),
            "",
            "/srv/a: the program of [program] command is not",
        ),
        (
            json!({ "Cmd": ["/bin/t"], "User": "nobody" }),
            "",
            "user nobody: the image's /etc/passwd has none",
        ),
        (
            json!({ "Cmd": ["/bin/t"], "User": "web:no" }),
            "",
            "group no: the image's /etc/group has none",
        ),
        (
            json!({ "Cmd": ["/bin/t"], "User": "a b" }),
            "",
            "the image's user: `a b` is neither",
        ),
        (
            json!({ "Cmd": ["/bin/t"], "WorkingDir": "x/../y" }),
            "",
            "the image's working directory",
        ),
        (
            json!({ "Cmd": ["/bin/t"], "Env": ["=x"] }),
            "",
            "which none can be",
        ),
        (
            json!({ "Cmd": ["/bin/t", "x".repeat(40_000)] }),
            "",
            "are the most",
        ),
        (
            json!({ "Cmd": ["/bin/t"] }),
            "[program]\ngroups = [\"no\"]\n",
            "group no: ",
        ),
    ] {
        save(process);
        let message = bench.build(TAR, own).unwrap_err().to_string();
        assert!(message.contains(part), "{message}\n  instead of\n{part}");
    }
}

#[test]
fn one_image_of_several_is_chosen() {
    let bench = Bench::new();
    let of = |word: &str| {
        let tar = archive(&[Entry::file("bin/t", 0o755, word)]);
        Layout::new(vec![Layer::plain(tar)], process())
    };
    let (one, two) = (of("one"), of("two"));
    let other = of("other").platform("arm64");
    // An index of several machines, with a statement about the image that is none itself.
    let several = Layout::index(&[&one, &other], &[]);
    several.write_archive(&bench.path("image.tar"));
    let built = bench.build(TAR, "").unwrap();
    assert_eq!(text(&view(&built.path), "/bin/t"), "one");
    // The same in an index of its own, as multi-arch images lie in a layout.
    several.nested().write_archive(&bench.path("image.tar"));
    assert_eq!(bench.build(TAR, "").unwrap().digest, built.digest);

    Layout::index(&[&one, &two], &["reg/t:1", "reg/t:2"]).write_archive(&bench.path("image.tar"));
    let message = bench.build(TAR, "").unwrap_err().to_string();
    assert!(
        message.contains("choose one by `tag` in [image]; there are reg/t:"),
        "{message}"
    );
    for (tag, content) in [("1", "one"), ("t:2", "two"), ("reg/t:2", "two")] {
        let built = bench.build(&format!("{TAR}\ntag = \"{tag}\""), "").unwrap();
        assert_eq!(text(&view(&built.path), "/bin/t"), content, "{tag}");
    }
    let message = bench
        .build(&format!("{TAR}\ntag = \"3\""), "")
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("there is no image called 3; there are reg/t:1, reg/t:2"),
        "{message}"
    );

    Layout::index(&[&other], &[]).write_archive(&bench.path("image.tar"));
    let message = bench.build(TAR, "").unwrap_err().to_string();
    assert!(
        message.contains("no image for linux/amd64, only for linux/arm64"),
        "{message}"
    );
    // A manifest that does not say what it is for: its configuration does.
    other.write_archive(&bench.path("image.tar"));
    let message = bench.build(TAR, "").unwrap_err().to_string();
    assert!(
        message.contains("the image is for linux/arm64, not for linux/amd64"),
        "{message}"
    );
}

#[test]
fn damaged_images_are_refused() {
    let bench = Bench::new();
    let tar = base();
    let layout = Layout::new(vec![Layer::packed(&tar, gzip(&tar))], process());
    let refusal = |bytes: Vec<u8>| {
        fs::write(bench.path("image.tar"), bytes).unwrap();
        bench.build(TAR, "").unwrap_err().to_string()
    };
    let good = layout.archive();
    // Every blob: one byte changed.
    for name in layout.blobs() {
        let message = refusal(oci::flip_member(&good, &name));
        assert!(
            message.contains("image.tar: not an OCI image that can be used")
                && message.contains("damaged"),
            "{name}: {message}"
        );
    }
    for name in layout.blobs() {
        let message = refusal(oci::without_member(&good, &name));
        assert!(
            message.contains(&format!("{name} is missing")) || message.contains("it is missing"),
            "{message}"
        );
    }
    // What is unpacked must be what the configuration says.
    let lying = Layout::new(vec![Layer::packed(b"other", gzip(&tar))], process());
    let message = refusal(lying.archive());
    assert!(
        message.contains("the image's configuration says"),
        "{message}"
    );
    // Cut at various places: never a panic, always an error that names the file.
    for len in [
        0,
        1,
        511,
        512,
        1000,
        2048,
        good.len() / 2,
        good.len() - 3000,
    ] {
        let message = refusal(good[..len].to_vec());
        assert!(message.contains("image.tar"), "{len}: {message}");
    }
    // Compressed with what is not known, or with garbage behind the right first bytes.
    for start in [
        &b"\x1f\x8bgarbage"[..],
        b"\x28\xb5\x2f\xfdgarbage",
        b"BZh9garbage",
    ] {
        let layout = Layout::new(vec![Layer::packed(b"", start.to_vec())], process());
        let message = refusal(layout.archive());
        assert!(message.contains("not an OCI image"), "{message}");
        assert!(refusal(start.to_vec()).contains("not an OCI image"));
    }
    assert!(refusal(archive(&[Entry::file("x", 0o644, "")])).contains("neither index.json"));
    let message = refusal(archive(&[Entry::file("index.json", 0o644, "{")]));
    assert!(message.contains("index.json: EOF"), "{message}");
    let artifact = layout.with_config_type("application/vnd.example+json");
    let message = refusal(artifact.archive());
    assert!(
        message.contains("an artifact of type application/vnd.example+json"),
        "{message}"
    );
    let message = bench
        .build("oci = \"missing.tar\"", "")
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("missing.tar: cannot read the OCI image"),
        "{message}"
    );
    // The `docker save` form has digests in its configuration only.
    let saved = docker_save(&Layout::new(vec![Layer::plain(base())], process()), &[]);
    let message = refusal(oci::edit_member(
        &saved,
        "layers/0/layer.tar",
        "program",
        "progrbm",
    ));
    assert!(
        message.contains("the image's configuration says"),
        "{message}"
    );
}
