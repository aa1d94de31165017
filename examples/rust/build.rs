//! Asks pkg-config where libguanaco is. The programs of this package look for it there when they run; cargo passes no rpath on
//! to packages that depend on this one, so theirs need LD_LIBRARY_PATH, or a build.rs that prints the line with -rpath below.
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=PKG_CONFIG_PATH");
    let output = Command::new("pkg-config").args(["--libs", "guanaco-c"]).output();
    let output = output.expect("pkg-config has to be installed");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "set PKG_CONFIG_PATH to where guanaco-c.pc is: {complaint}");
    for flag in String::from_utf8_lossy(&output.stdout).split_whitespace() {
        if let Some(folder) = flag.strip_prefix("-L") {
            println!("cargo:rustc-link-search=native={folder}");
            println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
        } else if let Some(library) = flag.strip_prefix("-l") {
            println!("cargo:rustc-link-lib=dylib={library}");
        }
    }
}
