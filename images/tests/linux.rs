//! Linux appliances: the schema's errors, the initial RAM disk, the root disk, and a boot.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use quorate_images::appliance::{Flavour, LinuxSpec};
use quorate_images::{Appliance, Console, Initramfs, KernelSource};

const SHELL: &str = r#"version = 1
name = "shell"
[image]
packages = ["busybox-static"]
[machine]
memory = "256M"
[linux]
cpus = 2
"#;

fn parse(text: &str) -> Result<Appliance, String> {
    Appliance::parse(text, Path::new("shell.toml")).map_err(|error| error.to_string())
}

#[test]
fn the_defaults_are_debians_cloud_kernel_and_the_images_own_init() {
    let linux = parse(SHELL).unwrap().linux.unwrap();
    let expected = LinuxSpec {
        cpus: 2,
        ..LinuxSpec::default()
    };
    assert_eq!(linux, expected);
    let cloud = KernelSource::Debian {
        flavour: Flavour::Cloud,
        version: None,
    };
    assert_eq!(linux.kernel, cloud);
    assert_eq!(linux.initramfs, Initramfs::Auto);
    assert_eq!(linux.console, Console::TtyS0);
    assert_eq!(linux.init(), "/sbin/init");
    // Without [linux] an appliance is the embedded guest's, and needs a program.
    let embedded = SHELL.replace("[linux]\ncpus = 2\n", "");
    assert_eq!(
        parse(&embedded).unwrap_err(),
        "shell.toml:1: missing table [program]"
    );
}

#[test]
fn kernels_are_named_by_flavour_and_version_or_by_file() {
    let kernel = |text: &str| {
        let line = format!("kernel = \"{text}\"\n");
        parse(&[SHELL, &line].concat()).map(|appliance| appliance.linux.unwrap().kernel)
    };
    assert_eq!(
        kernel("debian:amd64@6.12"),
        Ok(KernelSource::Debian {
            flavour: Flavour::Amd64,
            version: Some("6.12".to_owned()),
        })
    );
    assert_eq!(
        kernel("boot/vmlinuz"),
        Ok(KernelSource::File("boot/vmlinuz".into()))
    );
    for (text, why) in [
        ("debian:rt", "rt is no flavour"),
        ("debian:cloud@", "after @ comes"),
        ("debian:cloud@-o", "after @ comes"),
        ("", "the path of a file is empty"),
    ] {
        let error = kernel(text).unwrap_err();
        let start = "shell.toml:9: key \"kernel\" in [linux]: ";
        assert!(error.starts_with(start) && error.contains(why), "{error}");
    }
}

#[test]
fn a_replica_has_its_own_kernel_and_more_words_for_it() {
    let own = "cmdline = \"quiet\"\n[[replica]]\n[[replica]]\nlinux = { kernel = \"debian:cloud@6.12\", cmdline = \"nokaslr\" }\n";
    let appliance = parse(&[SHELL, own].concat()).unwrap();
    assert_eq!(appliance.replica(0).linux, appliance.linux);
    let second = appliance.replica(1).linux.unwrap();
    assert_eq!(second.cmdline, "quiet nokaslr");
    assert_eq!(second.cpus, 2);
    assert_ne!(second.kernel, appliance.linux.unwrap().kernel);
    let embedded = SHELL.replace(
        "[linux]\ncpus = 2\n",
        "[program]\ncommand = [\"/bin/sh\"]\n[[replica]]\nlinux = {}\n",
    );
    let error = parse(&embedded).unwrap_err();
    assert!(
        error.starts_with("shell.toml:9: key \"linux\" in [replica]: only"),
        "{error}"
    );
}

#[test]
fn errors_name_line_and_key() {
    let cases = [
        (
            "",
            "cpus = 2",
            "cpus = 0",
            ":8: key \"cpus\" in [linux]: 0 CPUs",
        ),
        (
            "",
            "cpus = 2",
            "cpu = 2",
            ":8: unknown key \"cpu\" in [linux]",
        ),
        (
            "console = \"ttyS1\"\n",
            "",
            "",
            ":9: key \"console\" in [linux]: unknown variant ttyS1",
        ),
        (
            "cmdline = \"a\\nb\"\n",
            "",
            "",
            ":9: key \"cmdline\" in [linux]: the kernel's command line is of",
        ),
        (
            "init = \"init\"\n",
            "",
            "",
            ":9: key \"init\" in [linux]: init is not an absolute path",
        ),
        (
            "modules = [\"../x\"]\n",
            "",
            "",
            ":9: key \"modules\" in [linux]: ../x is not a name",
        ),
        (
            "free = \"1000G\"\n",
            "",
            "",
            ":9: key \"free\" in [linux]: 1000G free",
        ),
        (
            "",
            "256M",
            "64M",
            ":5: key \"memory\" in [machine]: 64M are too little for a Linux guest: at least 96M",
        ),
        (
            "initramfs = \"none\"\n",
            "",
            "",
            ":7: key \"initramfs\" in [linux]: without one there is no root = \"memory\"",
        ),
        (
            "init = \"/bin/x\"\n[program]\ncommand = [\"/bin/y\"]\n",
            "",
            "",
            ":7: key \"init\" in [linux]: [program] has a command",
        ),
        (
            "[[disk]]\nname = \"r\"\nsize = \"1G\"\nseed = \"x\"\n",
            "256M\"",
            "256M\"\nroot = \"disk:r\"",
            ":10: disk r is the root of a Linux guest: it has no `seed`",
        ),
    ];
    for (more, from, to, expected) in cases {
        let text = [&SHELL.replace(from, to), more].concat();
        let error = parse(&text).expect_err(&text);
        let expected = format!("shell.toml{expected}");
        assert!(error.starts_with(&expected), "{error}\nis not\n{expected}");
    }
}
