//! A damaged root image: errors, never a panic, whatever is in it (the header is checked when it is mounted).

use crate::fs::testing::*;
use proptest::prelude::*;

/// Looks at everything, and changes some of it.
fn wander(path: &str, depth: u32, budget: &mut u32) {
    let Ok(fd) = open(path, 0o200000) else { return };
    let mut buf = vec![0u8; 4096];
    let n = sys(217, &[fd, buf.as_mut_ptr() as u64, 4096]).unwrap_or(0) as usize;
    close(fd);
    let mut rest = &buf[..n];
    while !rest.is_empty() && *budget > 0 {
        *budget -= 1;
        let size = usize::from(u16::from_le_bytes([rest[16], rest[17]]));
        let name = rest[19..size].split(|b| *b == 0).next().unwrap_or_default();
        let name = String::from_utf8_lossy(name).into_owned();
        rest = &rest[size..];
        if name == "." || name == ".." {
            continue;
        }
        let below = format!("{path}/{name}");
        let _ = lstat(&below);
        if let Ok(fd) = open(&below, 0o4002) {
            let _ = read(fd, 20000);
            let _ = pwrite(fd, b"changed", 5000);
            let _ = sys(77, &[fd, 10]);
            close(fd);
        }
        let _ = sys(80, &[c(&below)]);
        let mut cwd = [0u8; 4096];
        let _ = sys(79, &[cwd.as_mut_ptr() as u64, 4096]);
        let _ = sys(89, &[c(&below), cwd.as_mut_ptr() as u64, 4096]);
        if depth > 0 {
            wander(&below, depth - 1, budget);
        }
        let _ = sys(82, &[c(&below), c("/tmp/moved")]);
        let _ = sys(87, &[c(&below)]);
        let _ = sys(84, &[c(&below)]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn damage_is_an_error(flips in prop::collection::vec((4096..5450usize, any::<u8>()), 1..12)) {
        let _guard = setup();
        let mut image = test_image().to_vec();
        for (at, value) in flips {
            image[at] = value;
        }
        // Leaked: images are static.
        let image: &'static [u8] = Box::leak(image.into_boxed_slice());
        if crate::fs::init(image, IMAGE_PHYSICAL, None).is_ok() {
            wander("", 6, &mut 500);
        }
    }
}
