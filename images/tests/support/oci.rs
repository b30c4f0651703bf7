//! Puts OCI images together.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// An entry of a tar archive, its name as it is.
pub struct Entry {
    name: Vec<u8>,
    kind: tar::EntryType,
    mode: u32,
    link: String,
    content: Vec<u8>,
    device: (u32, u32),
}

impl Entry {
    fn new(name: &str, kind: tar::EntryType, mode: u32) -> Self {
        Self {
            name: name.as_bytes().to_vec(),
            kind,
            mode,
            link: String::new(),
            content: Vec::new(),
            device: (0, 0),
        }
    }

    pub fn dir(name: &str, mode: u32) -> Self {
        Self::new(name, tar::EntryType::Directory, mode)
    }

    pub fn file(name: &str, mode: u32, content: impl AsRef<[u8]>) -> Self {
        Self {
            content: content.as_ref().to_vec(),
            ..Self::new(name, tar::EntryType::Regular, mode)
        }
    }

    pub fn symlink(name: &str, target: &str) -> Self {
        Self {
            link: target.to_owned(),
            ..Self::new(name, tar::EntryType::Symlink, 0o777)
        }
    }

    pub fn hard_link(name: &str, target: &str) -> Self {
        Self {
            link: target.to_owned(),
            ..Self::new(name, tar::EntryType::Link, 0o644)
        }
    }

    pub fn device(name: &str, major: u32, minor: u32) -> Self {
        Self {
            device: (major, minor),
            ..Self::new(name, tar::EntryType::Block, 0o600)
        }
    }
}

/// A tar archive of these entries; nothing of them is checked, as somebody hostile would do it.
pub fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(entry.kind);
        header.set_mode(entry.mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(entry.content.len() as u64);
        if entry.kind == tar::EntryType::Block {
            header.set_device_major(entry.device.0).unwrap();
            header.set_device_minor(entry.device.1).unwrap();
        }
        let old = header.as_old_mut();
        old.name[..entry.name.len()].copy_from_slice(&entry.name);
        old.linkname[..entry.link.len()].copy_from_slice(entry.link.as_bytes());
        header.set_cksum();
        builder.append(&header, &entry.content[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

/// A layer: as it is stored, and what it unpacks to.
#[derive(Clone)]
pub struct Layer {
    stored: Vec<u8>,
    plain: Vec<u8>,
}

impl Layer {
    pub fn plain(tar: Vec<u8>) -> Self {
        Self {
            stored: tar.clone(),
            plain: tar,
        }
    }

    pub fn packed(tar: &[u8], stored: Vec<u8>) -> Self {
        Self {
            stored,
            plain: tar.to_vec(),
        }
    }
}

/// An OCI layout.
#[derive(Clone)]
pub struct Layout {
    layers: Vec<Layer>,
    config: Value,
    config_type: String,
    /// Blobs by their digests.
    blobs: BTreeMap<String, Vec<u8>>,
    /// Descriptors in `index.json`.
    manifests: Vec<Value>,
}

impl Layout {
    pub fn new(layers: Vec<Layer>, process: Value) -> Self {
        let diff_ids: Vec<String> = layers
            .iter()
            .map(|layer| format!("sha256:{}", sha256(&layer.plain)))
            .collect();
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": process,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let mut layout = Self {
            layers,
            config,
            config_type: CONFIG.to_owned(),
            blobs: BTreeMap::new(),
            manifests: Vec::new(),
        };
        layout.seal();
        layout
    }

    /// Makes the blobs anew.
    fn seal(&mut self) {
        self.blobs.clear();
        let mut descriptors = Vec::new();
        for layer in self.layers.clone() {
            let kind = "application/vnd.oci.image.layer.v1.tar";
            descriptors.push(self.blob(kind, layer.stored));
        }
        let config = self.config.to_string().into_bytes();
        let config_type = self.config_type.clone();
        let config = self.blob(&config_type, config);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": descriptors,
        });
        let manifest = self.blob(MANIFEST, manifest.to_string().into_bytes());
        self.manifests = vec![manifest];
    }

    fn blob(&mut self, kind: &str, bytes: Vec<u8>) -> Value {
        let digest = sha256(&bytes);
        let size = bytes.len();
        self.blobs.insert(digest.clone(), bytes);
        json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": size })
    }

    /// The same for another machine.
    pub fn platform(mut self, architecture: &str) -> Self {
        self.config["architecture"] = json!(architecture);
        self.seal();
        self
    }

    pub fn with_config_type(&self, kind: &str) -> Self {
        let mut other = self.clone();
        kind.clone_into(&mut other.config_type);
        other.seal();
        other
    }

    /// One layout with several images: of several machines, or of several names.
    pub fn index(layouts: &[&Self], names: &[&str]) -> Self {
        let mut all = layouts[0].clone();
        all.manifests.clear();
        for (number, layout) in layouts.iter().enumerate() {
            all.blobs.extend(layout.blobs.clone());
            let mut manifest = layout.manifests[0].clone();
            match names.get(number) {
                Some(name) => manifest["annotations"] = json!({ "io.containerd.image.name": name }),
                None => {
                    let architecture = &layout.config["architecture"];
                    manifest["platform"] = json!({ "os": "linux", "architecture": architecture });
                }
            }
            all.manifests.push(manifest);
        }
        let mut statement = all.manifests[0].clone();
        statement["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
        statement["digest"] = json!(format!("sha256:{}", "0".repeat(64)));
        if names.is_empty() {
            all.manifests.push(statement);
        }
        all
    }

    /// The same with its manifests in an index of their own.
    pub fn nested(mut self) -> Self {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": self.manifests });
        let index = self.blob(INDEX, index.to_string().into_bytes());
        self.manifests = vec![index];
        self
    }

    pub fn layer_blob(&self, number: usize) -> String {
        format!("blobs/sha256/{}", sha256(&self.layers[number].stored))
    }

    /// Names of all blobs.
    pub fn blobs(&self) -> Vec<String> {
        self.blobs
            .keys()
            .map(|digest| format!("blobs/sha256/{digest}"))
            .collect()
    }

    fn files(&self) -> Vec<(String, Vec<u8>)> {
        let index = json!({ "schemaVersion": 2, "manifests": self.manifests });
        let mut files = vec![
            (
                "oci-layout".to_owned(),
                br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
            ),
            ("index.json".to_owned(), index.to_string().into_bytes()),
        ];
        for (digest, bytes) in &self.blobs {
            files.push((format!("blobs/sha256/{digest}"), bytes.clone()));
        }
        files
    }

    pub fn write(&self, to: &Path) {
        for (name, bytes) in self.files() {
            let path = to.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }

    pub fn archive(&self) -> Vec<u8> {
        let entries: Vec<Entry> = self
            .files()
            .into_iter()
            .map(|(name, bytes)| Entry::file(&name, 0o644, bytes))
            .collect();
        archive(&entries)
    }

    pub fn write_archive(&self, to: &Path) {
        fs::write(to, self.archive()).unwrap();
    }
}

/// What `docker save` wrote before it knew OCI layouts; the second of two equal layers is a link to the first.
pub fn docker_save(layout: &Layout, tags: &[&str]) -> Vec<u8> {
    let config = layout.config.to_string().into_bytes();
    let config_name = format!("{}.json", sha256(&config));
    let mut entries = vec![Entry::file(&config_name, 0o644, &config)];
    let mut names = Vec::new();
    for (number, layer) in layout.layers.iter().enumerate() {
        let name = format!("layers/{number}/layer.tar");
        let earlier = layout.layers[..number]
            .iter()
            .position(|other| other.plain == layer.plain);
        entries.push(match earlier {
            Some(earlier) => Entry::symlink(&name, &format!("../{earlier}/layer.tar")),
            None => Entry::file(&name, 0o644, &layer.plain),
        });
        names.push(name);
    }
    let manifest = json!([{ "Config": config_name, "RepoTags": tags, "Layers": names }]);
    entries.push(Entry::file("manifest.json", 0o644, manifest.to_string()));
    archive(&entries)
}

/// The archive with each member passed through `change`; `None` leaves it out.
fn changed(bytes: &[u8], change: impl Fn(&str, Vec<u8>) -> Option<Vec<u8>>) -> Vec<u8> {
    let mut entries = Vec::new();
    for entry in tar::Archive::new(bytes).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        if let Some(content) = change(&name, content) {
            entries.push(Entry::file(&name, 0o644, content));
        }
    }
    archive(&entries)
}

pub fn edit_member(bytes: &[u8], member: &str, from: &str, to: &str) -> Vec<u8> {
    changed(bytes, |name, content| {
        if name != member {
            return Some(content);
        }
        let text = String::from_utf8(content).unwrap();
        assert!(text.contains(from), "{text}");
        Some(text.replace(from, to).into_bytes())
    })
}

/// Changes a byte in the middle of a member.
pub fn flip_member(bytes: &[u8], member: &str) -> Vec<u8> {
    changed(bytes, |name, mut content| {
        if name == member {
            let middle = content.len() / 2;
            content[middle] ^= 1;
        }
        Some(content)
    })
}

pub fn without_member(bytes: &[u8], member: &str) -> Vec<u8> {
    changed(bytes, |name, content| (name != member).then_some(content))
}
