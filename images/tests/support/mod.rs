//! What tests of images share: a look into a finished image.
#![allow(dead_code)]

pub mod oci;

use std::path::Path;

use quorate_abi::image::{ImageView, Inode};

/// A finished image, read.
#[derive(Debug)]
pub struct Image(pub Vec<u8>);

impl Image {
    pub fn view(&self) -> ImageView<'_> {
        ImageView::parse(&self.0).unwrap()
    }
}

pub fn view(path: &Path) -> Image {
    Image(std::fs::read(path).unwrap())
}

/// Follows symbolic links, as a program in the guest would.
pub fn resolve(view: &ImageView<'_>, path: &str) -> Option<u32> {
    let mut at = vec![view.root()];
    let mut todo: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
    let mut links = 0;
    while let Some(part) = todo.pop() {
        match part.as_str() {
            "" | "." => continue,
            ".." => {
                if at.len() > 1 {
                    at.pop();
                }
                continue;
            }
            _ => {}
        }
        let next = view.lookup(*at.last()?, part.as_bytes()).ok()??;
        if view.inode(next).ok()?.is_symlink() {
            links += 1;
            assert!(links < 40, "{path}: loop");
            let target = String::from_utf8(view.readlink(next).ok()?.to_vec()).ok()?;
            if target.starts_with('/') {
                at.truncate(1);
            }
            todo.extend(target.split('/').rev().map(str::to_owned));
        } else {
            at.push(next);
        }
    }
    at.last().copied()
}

pub fn follow(image: &Image, path: &str) -> Option<u32> {
    resolve(&image.view(), path)
}

pub fn inode(image: &Image, path: &str) -> Inode {
    let ino = follow(image, path).expect(path);
    image.view().inode(ino).unwrap()
}

pub fn text(image: &Image, path: &str) -> String {
    let ino = follow(image, path).expect(path);
    String::from_utf8(image.view().data(ino).unwrap().to_vec()).unwrap()
}

/// Names in a directory.
pub fn list(image: &Image, path: &str) -> Vec<String> {
    let view = image.view();
    let ino = follow(image, path).expect(path);
    (0..)
        .map_while(|index| view.entry(ino, index).unwrap())
        .map(|(name, _)| String::from_utf8(name.to_vec()).unwrap())
        .collect()
}
