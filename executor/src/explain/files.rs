//! The files of the root image, by where their contents lie in it: programs are mapped from there in place.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use quorate_abi::image::ImageView;
use quorate_abi::map::IMAGE_BASE;

use super::binary::Binary;

/// Files that are looked at in one image (R10); what is beyond has no name.
const MAX_FILES: usize = 1 << 20;
/// Where a program without a path is looked for.
const PATH: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];
/// Links on the way to a file.
const MAX_LINKS: usize = 16;
/// Deepest directory that is followed.
const MAX_DEPTH: usize = 64;

/// One regular file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct File {
    start: u64,
    len: u64,
    ino: u32,
    path: String,
}

/// See the module.
pub struct Files {
    bytes: Vec<u8>,
    files: Vec<File>,
    started: Option<u32>,
    binaries: RefCell<BTreeMap<u32, Option<Rc<Binary>>>>,
}

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFile {
    /// Path in the guest.
    pub path: String,
    /// Inode in the image.
    pub ino: u32,
    /// Where in the file.
    pub offset: u64,
}

impl Files {
    /// None: no image.
    #[must_use]
    pub fn none() -> Files {
        Files {
            bytes: Vec::new(),
            files: Vec::new(),
            started: None,
            binaries: RefCell::default(),
        }
    }

    /// Reads an image; `program` is the path of the program that runs.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(path: &Path, program: &str) -> std::io::Result<Files> {
        Ok(Files::of(std::fs::read(path)?, program))
    }

    /// An image in memory. What is damaged in it has no name. Of a file's names that of the program is taken, else the first.
    #[must_use]
    pub fn of(bytes: Vec<u8>, program: &str) -> Files {
        let mut files = Vec::new();
        if let Ok(view) = ImageView::parse(&bytes) {
            collect(&view, view.root(), "", 0, &mut files);
        }
        files.sort_by(|one, two| (one.start, &one.path).cmp(&(two.start, &two.path)));
        files.dedup_by_key(|file| file.start);
        // A program that is started by a link goes by the link's name.
        let places = if program.contains('/') {
            vec![program.to_owned()]
        } else {
            PATH.map(|directory| format!("{directory}/{program}"))
                .to_vec()
        };
        let found = ImageView::parse(&bytes).ok().and_then(|view| {
            places
                .into_iter()
                .find_map(|path| Some((view.data_offset(follow(&view, &path, 0)?).ok()?, path)))
        });
        // Files of the same content lie in the same place.
        let mut started = None;
        if let Some((start, path)) = found
            && let Some(file) = files.iter_mut().find(|file| file.start == start)
        {
            started = Some(file.ino);
            file.path = path;
        }
        Files {
            bytes,
            files,
            started,
            binaries: RefCell::default(),
        }
    }

    /// The file whose contents lie at a guest-physical address.
    #[must_use]
    pub fn at(&self, phys: u64) -> Option<InFile> {
        let at = phys.checked_sub(IMAGE_BASE)?;
        let index = self.files.partition_point(|file| file.start <= at);
        let file = self.files.get(index.checked_sub(1)?)?;
        let offset = at - file.start;
        (offset < file.len.next_multiple_of(4096)).then(|| InFile {
            path: file.path.clone(),
            ino: file.ino,
            offset,
        })
    }

    /// The program that was named, if it is an ELF file.
    pub fn program(&self) -> Option<Rc<Binary>> {
        self.binary(self.started?)
    }

    /// The ELF file with that inode.
    pub fn binary(&self, ino: u32) -> Option<Rc<Binary>> {
        let mut binaries = self.binaries.borrow_mut();
        let binary = binaries.entry(ino).or_insert_with(|| {
            let file = self.files.iter().find(|file| file.ino == ino)?;
            let view = ImageView::parse(&self.bytes).ok()?;
            Binary::parse(&file.path, view.data(ino).ok()?).map(Rc::new)
        });
        binary.clone()
    }
}

/// The file that a path leads to.
fn follow(view: &ImageView<'_>, path: &str, links: usize) -> Option<u32> {
    let mut at = view.root();
    let mut done = String::new();
    let mut names = path
        .split('/')
        .filter(|name| !name.is_empty() && *name != ".");
    while let Some(name) = names.next() {
        if name == ".." {
            at = view.parent(at).ok()?;
            done.truncate(done.rfind('/').unwrap_or(0));
            continue;
        }
        let next = view.lookup(at, name.as_bytes()).ok()??;
        if !view.inode(next).ok()?.is_symlink() {
            at = next;
            done = format!("{done}/{name}");
            continue;
        }
        if links >= MAX_LINKS {
            return None;
        }
        let target = std::str::from_utf8(view.readlink(next).ok()?).ok()?;
        let rest: Vec<&str> = names.collect();
        let base = if target.starts_with('/') { "" } else { &done };
        return follow(
            view,
            &format!("{base}/{target}/{}", rest.join("/")),
            links + 1,
        );
    }
    Some(at)
}

fn collect(view: &ImageView<'_>, dir: u32, path: &str, depth: usize, files: &mut Vec<File>) {
    let mut index = 0;
    while let Ok(Some((name, ino))) = view.entry(dir, index) {
        index += 1;
        if files.len() >= MAX_FILES {
            return;
        }
        let Ok(inode) = view.inode(ino) else { continue };
        let path = format!("{path}/{}", String::from_utf8_lossy(name));
        if inode.is_dir() {
            if depth < MAX_DEPTH {
                collect(view, ino, &path, depth + 1, files);
            }
        } else if inode.is_regular()
            && inode.size > 0
            && let Ok(start) = view.data_offset(ino)
        {
            files.push(File {
                start,
                len: inode.size,
                ino,
                path,
            });
        }
    }
}
