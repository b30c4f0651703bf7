//! The JSON documents of OCI images (image-spec 1.1) and of `docker save`.

use std::collections::BTreeMap;
use std::io::Read;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::store::{Part, Store};

/// Largest document, bytes (R10).
const MAX_DOCUMENT: u64 = 4 << 20;
/// How deep indexes may lie in each other.
const MAX_DEPTH: usize = 4;
/// Most layers (R10); Docker's own bound is 127.
pub(super) const MAX_LAYERS: usize = 512;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const FULL_NAME: &str = "io.containerd.image.name";

/// An image in a store: its configuration and layers.
pub(super) struct Found {
    /// Says which image it is: SHA-256 of its configuration, hexadecimal.
    pub id: String,
    pub config: Config,
    /// Parts with the layers, the lowest first.
    pub layers: Vec<LayerRef>,
}

pub(super) struct LayerRef {
    /// The part.
    pub name: String,
    /// SHA-256 of the part, if it is known.
    pub sha256: Option<String>,
    /// SHA-256 of the layer unpacked.
    pub diff_id: String,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Clone, Deserialize)]
struct Descriptor {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Clone, Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// One element of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// The configuration of an image.
#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    pub config: Option<Process>,
    #[serde(default)]
    rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

/// What an image says of the program to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Process {
    /// `USER[:GROUP]`, names or numbers; empty for root.
    pub user: Option<String>,
    /// `NAME=VALUE`.
    pub env: Option<Vec<String>>,
    /// First words of the command.
    pub entrypoint: Option<Vec<String>>,
    /// The words after them.
    pub cmd: Option<Vec<String>>,
    /// Working directory.
    pub working_dir: Option<String>,
}

/// Finds the image for this machine, the one called `tag` if there are several.
pub(super) fn find(store: &Store, tag: Option<&str>) -> Result<Found, String> {
    if let Some(part) = part(store, "index.json")? {
        let index: Index = parse("index.json", &document("index.json", &part)?)?;
        return from_index(store, &index, tag);
    }
    if let Some(part) = part(store, "manifest.json")? {
        let saved: Vec<Saved> = parse("manifest.json", &document("manifest.json", &part)?)?;
        return from_saved(store, saved, tag);
    }
    Err("it has neither index.json (an OCI layout) nor manifest.json (`docker save`)".to_owned())
}

fn from_index(store: &Store, index: &Index, tag: Option<&str>) -> Result<Found, String> {
    let mut candidates = Vec::new();
    let mut others = Vec::new();
    for descriptor in &index.manifests {
        let names = names(descriptor);
        if tag.is_none_or(|tag| names.iter().any(|name| is_called(name, tag))) {
            collect(store, descriptor, &names, 0, &mut candidates, &mut others)?;
        }
    }
    // The same image under several names is one.
    candidates.sort_by(|a, b| a.0.digest.cmp(&b.0.digest));
    candidates.dedup_by(|a, b| a.0.digest == b.0.digest);
    let all_names = || index.manifests.iter().flat_map(names).collect::<Vec<_>>();
    match &candidates[..] {
        [] if !others.is_empty() => Err(format!(
            "there is no image for linux/amd64, only for {}",
            others.join(", ")
        )),
        [] => Err(no_such_image(tag, &all_names())),
        [(descriptor, _)] => from_manifest(store, descriptor),
        several => {
            let names = several.iter().flat_map(|(_, names)| names.clone());
            Err(several_images(&names.collect::<Vec<_>>()))
        }
    }
}

type Candidates = Vec<(Descriptor, Vec<String>)>;

/// Gathers the manifests for this machine that `descriptor` leads to, and the platforms of the others.
fn collect(
    store: &Store,
    descriptor: &Descriptor,
    names: &[String],
    depth: usize,
    candidates: &mut Candidates,
    others: &mut Vec<String>,
) -> Result<(), String> {
    if matches!(descriptor.media_type.as_str(), INDEX | DOCKER_INDEX) {
        if depth == MAX_DEPTH {
            return Err(format!(
                "indexes lie more than {MAX_DEPTH} deep in each other"
            ));
        }
        let index: Index = parse(&descriptor.digest, &blob(store, descriptor)?)?;
        for inner in &index.manifests {
            collect(store, inner, names, depth + 1, candidates, others)?;
        }
        return Ok(());
    }
    match &descriptor.platform {
        Some(platform) if platform.os == "unknown" => {}
        Some(platform) if platform.os != "linux" || platform.architecture != "amd64" => {
            others.push(format!("{}/{}", platform.os, platform.architecture));
        }
        _ => candidates.push((descriptor.clone(), names.to_vec())),
    }
    Ok(())
}

fn from_manifest(store: &Store, descriptor: &Descriptor) -> Result<Found, String> {
    let manifest: Manifest = parse(&descriptor.digest, &blob(store, descriptor)?)?;
    if !manifest.config.media_type.contains("image") {
        let found = &manifest.config.media_type;
        return Err(format!("an artifact of type {found}, not an image"));
    }
    let config: Config = parse(&manifest.config.digest, &blob(store, &manifest.config)?)?;
    let layers = manifest.layers.iter().map(|layer| {
        let (name, sha256) = blob_name(&layer.digest)?;
        Ok((name, Some(sha256)))
    });
    let layers = layers.collect::<Result<Vec<_>, String>>()?;
    let (_, id) = blob_name(&manifest.config.digest)?;
    found(id, config, layers)
}

fn from_saved(store: &Store, saved: Vec<Saved>, tag: Option<&str>) -> Result<Found, String> {
    let tags = |saved: &Saved| saved.repo_tags.clone().unwrap_or_default();
    let all: Vec<String> = saved.iter().flat_map(tags).collect();
    let mut wanted = saved
        .into_iter()
        .filter(|saved| tag.is_none_or(|tag| tags(saved).iter().any(|name| is_called(name, tag))));
    let image = wanted.next().ok_or_else(|| no_such_image(tag, &all))?;
    if wanted.next().is_some() {
        return Err(several_images(&all));
    }
    let part = part(store, &image.config)?.ok_or_else(|| format!("{} is missing", image.config))?;
    let bytes = document(&image.config, &part)?;
    let id = hex(&Sha256::digest(&bytes));
    // The file's name says its digest: `DIGEST.json`, or a blob.
    let name = image.config.rsplit('/').next().unwrap_or_default();
    let named = name.strip_suffix(".json").unwrap_or(name);
    if is_sha256(named) && named != id {
        return Err(format!("{} has the SHA-256 {id}", image.config));
    }
    let config = parse(&image.config, &bytes)?;
    let layers = image.layers.into_iter().map(|name| (name, None)).collect();
    found(id, config, layers)
}

fn found(
    id: String,
    config: Config,
    layers: Vec<(String, Option<String>)>,
) -> Result<Found, String> {
    if (config.os.as_str(), config.architecture.as_str()) != ("linux", "amd64") {
        let (os, architecture) = (&config.os, &config.architecture);
        return Err(format!(
            "the image is for {os}/{architecture}, not for linux/amd64"
        ));
    }
    let diff_ids = &config.rootfs.diff_ids;
    if diff_ids.len() != layers.len() || layers.len() > MAX_LAYERS {
        return Err(format!(
            "{} layers, {} digests for them; at most {MAX_LAYERS} layers are possible",
            layers.len(),
            diff_ids.len()
        ));
    }
    let layers = layers.into_iter().zip(diff_ids);
    let layers = layers.map(|((name, sha256), diff_id)| {
        let (_, diff_id) = blob_name(diff_id)?;
        Ok(LayerRef {
            name,
            sha256,
            diff_id,
        })
    });
    let layers = layers.collect::<Result<_, String>>()?;
    Ok(Found { id, config, layers })
}

fn names(descriptor: &Descriptor) -> Vec<String> {
    [FULL_NAME, REF_NAME]
        .iter()
        .filter_map(|key| descriptor.annotations.get(*key).cloned())
        .collect()
}

/// Whether `tag` means the image `name`: all of it, or what follows the last `:`, or a part after a `/`.
fn is_called(name: &str, tag: &str) -> bool {
    name == tag
        || [':', '/'].iter().any(|&mark| {
            name.strip_suffix(tag)
                .is_some_and(|before| before.ends_with(mark))
        })
}

fn no_such_image(tag: Option<&str>, names: &[String]) -> String {
    match tag {
        Some(tag) => format!("there is no image called {tag}; {}", listed(names)),
        None => "there is no image in it".to_owned(),
    }
}

fn several_images(names: &[String]) -> String {
    format!(
        "there are several images: choose one by `tag` in [image]; {}",
        listed(names)
    )
}

fn listed(names: &[String]) -> String {
    if names.is_empty() {
        "they have no names".to_owned()
    } else {
        format!("there are {}", names.join(", "))
    }
}

/// Part and SHA-256 of a digest `sha256:HEX`.
fn blob_name(digest: &str) -> Result<(String, String), String> {
    match digest.strip_prefix("sha256:") {
        Some(hex) if is_sha256(hex) => Ok((format!("blobs/sha256/{hex}"), hex.to_owned())),
        _ => Err(format!("digest {digest}: only sha256 is possible")),
    }
}

fn is_sha256(text: &str) -> bool {
    let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    text.len() == 64 && text.bytes().all(digit)
}

/// A document by its descriptor, whose digest and size it must have.
fn blob(store: &Store, descriptor: &Descriptor) -> Result<Vec<u8>, String> {
    let (name, sha256) = blob_name(&descriptor.digest)?;
    let part = part(store, &name)?.ok_or_else(|| format!("{name} is missing"))?;
    let bytes = document(&name, &part)?;
    if bytes.len() as u64 != descriptor.size || hex(&Sha256::digest(&bytes)) != sha256 {
        return Err(format!("{name} is damaged: its size or digest is another"));
    }
    Ok(bytes)
}

pub(super) fn part(store: &Store, name: &str) -> Result<Option<Part>, String> {
    store.read(name).map_err(|error| format!("{name}: {error}"))
}

fn document(name: &str, part: &Part) -> Result<Vec<u8>, String> {
    if part.len > MAX_DOCUMENT {
        return Err(format!(
            "{name} has {} bytes; {MAX_DOCUMENT} are the most",
            part.len
        ));
    }
    let mut bytes = Vec::new();
    part.reader()
        .and_then(|mut reader| reader.read_to_end(&mut bytes))
        .map_err(|error| format!("{name}: {error}"))?;
    Ok(bytes)
}

fn parse<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| format!("{name}: {error}"))
}

/// Digits of a digest.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
