//! What a release packs. The Debian package and its unit: made twice with the same bytes, judged by systemd's own tools,
//! unpacked, and run as the unit says; systemd itself starts nothing here, since it would have to be the first process of
//! the machine. The programs are started as the recipe starts them, and images of two processors made one.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use etcd_proxy_e2e::docs::Session;
use etcd_proxy_e2e::{Etcd, Etcdctl, Process, Version, ports, programs};
use serde_json::Value;

/// What `systemd-analyze security` may find at most; most services of a distribution stand at 9.
const EXPOSURE: &str = "--threshold=20";
/// How long the proxy may take to say that it is ready, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// The package of the program that cargo built.
fn package(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    let script = programs::repository().join("deploy/debian/build.sh");
    // Compressing takes long and is dpkg's business.
    output(Command::new(script).arg(programs::etcd_proxy()).arg(&path).env("DEB_COMPRESSION", "none"));
    path
}

fn folder() -> tempfile::TempDir {
    tempfile::TempDir::with_prefix("etcd-proxy-package-").expect("a temporary folder can be made")
}

#[test]
fn the_package_has_the_same_bytes_each_time_and_leaves_the_configuration_to_the_administrator() {
    let folder = folder();
    let (one, two) = (package(folder.path(), "one.deb"), package(folder.path(), "two.deb"));
    let bytes = |path: &Path| std::fs::read(path).expect("the package can be read");
    assert!(bytes(&one) == bytes(&two), "the packages differ");

    let fields = output(Command::new("dpkg-deb").arg("--field").arg(&one));
    assert!(fields.contains("Package: etcd-proxy\n") && fields.contains("Depends: adduser\n"), "{fields}");
    let files = output(Command::new("dpkg-deb").arg("--contents").arg(&one));
    for (mode, file) in [
        ("-rwxr-xr-x root/root", "./usr/bin/etcd-proxy"),
        ("-rw-r--r-- root/root", "./usr/lib/systemd/system/etcd-proxy.service"),
        ("-rw-r--r-- root/root", "./etc/etcd-proxy/config.yaml"),
        ("-rw-r--r-- root/root", "./usr/share/doc/etcd-proxy/copyright"),
    ] {
        let line = files.lines().find(|line| line.ends_with(file));
        assert!(line.is_some_and(|line| line.starts_with(mode)), "{file}: {files}");
    }
    output(Command::new("dpkg-deb").arg("--control").arg(&one).arg(folder.path().join("control")));
    let control = |name: &str| folder.path().join("control").join(name);
    assert_eq!(std::fs::read_to_string(control("conffiles")).expect("it is there"), "/etc/etcd-proxy/config.yaml\n");
    for script in ["postinst", "prerm", "postrm"] {
        output(Command::new("sh").arg("-n").arg(control(script)));
    }
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit_and_little_that_it_could_harm() {
    let folder = folder();
    let unit = programs::repository().join("deploy/debian/etcd-proxy.service");
    let text = std::fs::read_to_string(unit).expect("the unit is there");
    // The program is looked for where the unit says.
    let program = programs::etcd_proxy().display().to_string();
    let copy = folder.path().join("etcd-proxy.service");
    std::fs::write(&copy, text.replace("/usr/bin/etcd-proxy", &program)).expect("the copy can be written");
    let verify = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&copy).output();
    let verify = verify.expect("systemd-analyze can be started; tools/prerequisites.sh installs it");
    let said = String::from_utf8_lossy(&verify.stderr).into_owned();
    // It also names what is wrong with other units of this machine.
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("etcd-proxy")).collect();
    assert!(verify.status.success() && ours.is_empty(), "{said}");
    output(Command::new("systemd-analyze").args(["security", "--offline=true", "--no-pager", EXPOSURE]).arg(&copy));
}

#[test]
fn what_the_package_installs_starts_serves_and_ends_as_its_unit_says() {
    let folder = folder();
    let root = folder.path().join("root");
    output(Command::new("dpkg-deb").arg("--extract").arg(package(folder.path(), "it.deb")).arg(&root));
    let etcd = Etcd::start();
    let (clients, metrics) = (ports::free_address(), ports::free_address());
    let config = root.join("etc/etcd-proxy/config.yaml");
    let text = std::fs::read_to_string(&config).expect("the package has a configuration");
    let text = text.replace("127.0.0.1:23790", &clients).replace("127.0.0.1:23791", &metrics);
    std::fs::write(&config, text.replace("127.0.0.1:2379", etcd.address())).expect("it can be written");

    let unit = std::fs::read_to_string(root.join("usr/lib/systemd/system/etcd-proxy.service")).expect("it has a unit");
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("the unit says what to start");
    let root = root.display();
    let start = start.replace("/usr/", &format!("{root}/usr/")).replace("/etc/", &format!("{root}/etc/"));
    let mut words = start.split_whitespace();
    let mut command = Command::new(words.next().expect("a program stands first"));
    let socket = folder.path().join("notify");
    let daemon = UnixDatagram::bind(&socket).expect("a socket can be made");
    daemon.set_read_timeout(Some(PATIENCE)).expect("it can have a timeout");
    command.args(words).env("NOTIFY_SOCKET", &socket);
    let mut process = Process::spawn("etcd-proxy.service", &mut command, b"");
    let told = || {
        let mut buffer = [0; 512];
        let length = daemon.recv(&mut buffer).expect("the proxy tells the daemon");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    assert!(unit.contains("\nType=notify\n"));
    assert_eq!(told(), "READY=1");
    let etcdctl = Etcdctl::new(Version::default(), &clients);
    assert_eq!(etcdctl.ok(&["put", "greeting", "hello"]).trim(), "OK");
    assert_eq!(etcdctl.ok(&["get", "greeting", "--print-value-only"]).trim(), "hello");
    process.signal(libc::SIGTERM);
    assert_eq!(told(), "STOPPING=1");
    assert_eq!(process.wait(), 0);
}

/// Stand-ins for what would change this machine, or needs systemd as its first process: a package is unpacked into a folder,
/// and a unit is started as its file says, until it tells that it is ready.
const STAND_INS: [(&str, &str); 5] = [
    ("make", "[ \"$1\" = deb ] && mkdir -p target && cp \"$PACKAGE\" target/etcd-proxy.deb"),
    ("apt", "[ \"$1\" = install ] && dpkg-deb --extract \"$2\" root"),
    ("editor", "sed -i \"s|\\[127.0.0.1:2379\\]|[$ETCD]|; $PORTS\" \"root$1\""),
    (
        "systemctl",
        "[ \"$1 $2\" = 'enable --now' ] || exit 1\n\
         start=$(sed -n \"s|^ExecStart=||p\" \"root/usr/lib/systemd/system/$3.service\" | sed 's|/usr/|root/usr/|; s|/etc/|root/etc/|')\n\
         $start >/dev/null 2>journal &\n\
         until grep -q 'successfully notified init daemon' journal; do kill -0 $!; sleep 0.1; done",
    ),
    ("journalctl", "[ \"$1\" = -u ] && cat journal"),
];

#[test]
fn the_quick_start_on_a_host_works_as_pasted_with_stand_ins_for_apt_and_systemd() {
    let folder = folder();
    let package = package(folder.path(), "it.deb");
    let etcd = Etcd::start();
    let bin = folder.path().join("stand-ins");
    std::fs::create_dir(&bin).expect("a folder can be made");
    let (clients, metrics) = (ports::free(), ports::free());
    for (name, script) in STAND_INS {
        let path = bin.join(name);
        let script = script
            .replace("$PACKAGE", &package.display().to_string())
            .replace("$ETCD", etcd.address())
            .replace("$PORTS", &format!("s|:23790|:{clients}|; s|:23791|:{metrics}|"));
        std::fs::write(&path, format!("#!/bin/sh\nset -e\n{script}\n")).expect("the script can be written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("it can be made executable");
    }
    let bin = bin.display().to_string();
    let session = Session::read("docs/quick-start.md", "On a host").map(|line| format!("PATH={bin}:$PATH; {line}"));
    let known = HashMap::from([(23790, clients), (23791, metrics)]);
    let outcome = session.run(folder.path(), Version::default(), &known);
    assert!(outcome.stdout.contains(&clients.to_string()), "the journal tells where it listens: {outcome:?}");
}

#[test]
fn programs_of_a_release_are_started_before_they_are_packed() {
    let folder = programs::etcd_proxy().parent().expect("a program lies in a folder").to_owned();
    let script = |name: &str| programs::repository().join("deploy").join(name);
    output(Command::new(script("smoke.sh")).arg(&folder));
    let release = std::fs::read_to_string(script("release.sh")).expect("the recipe is there");
    let place = |what: &str| release.find(what).unwrap_or_else(|| panic!("the recipe has no {what}"));
    for packer in ["debian/build.sh", "image/build.sh", "pack \"$stage\""] {
        assert!(place("deploy/smoke.sh \"$built\"") < place(packer), "{packer}");
    }
    // What does not work is not packed.
    let broken = self::folder();
    for name in ["etcd-proxy", "etcd-proxy-operator"] {
        std::os::unix::fs::symlink("/bin/false", broken.path().join(name)).expect("a link can be made");
    }
    let refused = Command::new(script("smoke.sh")).arg(broken.path()).output().expect("the script can be started");
    assert!(!refused.status.success());
}

#[test]
fn one_image_serves_two_processors_and_has_the_same_bytes_each_time() {
    let folder = folder();
    let script = |name: &str| programs::repository().join("deploy/image").join(name);
    let at = |name: &str| folder.path().join(name);
    for architecture in ["amd64", "arm64"] {
        let root = at(architecture);
        std::fs::create_dir(&root).expect("a folder can be made");
        std::fs::write(root.join("program"), architecture).expect("a file can be written");
        let mut make = Command::new(script("oci.sh"));
        make.args(["--architecture", architecture, "--name", "localhost/it:1", "--entrypoint", "/program"]);
        output(make.arg(&root).arg(at(&format!("{architecture}.tar"))));
    }
    for out in ["one.tar", "two.tar"] {
        output(Command::new(script("join.sh")).arg(at(out)).arg(at("amd64.tar")).arg(at("arm64.tar")));
    }
    let bytes = |name: &str| std::fs::read(at(name)).expect("the image can be read");
    assert!(bytes("one.tar") == bytes("two.tar"), "the images differ");

    let whole = at("whole");
    std::fs::create_dir(&whole).expect("a folder can be made");
    output(Command::new("tar").arg("-xf").arg(at("one.tar")).arg("-C").arg(&whole));
    let json = |path: PathBuf| -> Value {
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"))
    };
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:"));
        let path = whole.join("blobs/sha256").join(digest.expect("a descriptor has a digest"));
        let size = std::fs::metadata(&path).expect("the blob is there").len();
        assert_eq!(descriptor["size"], size, "{descriptor}");
        path
    };
    let index = json(blob(&json(whole.join("index.json"))["manifests"][0]));
    let platforms: Vec<&Value> = ["amd64", "arm64"]
        .iter()
        .zip(index["manifests"].as_array().expect("an index has manifests"))
        .map(|(architecture, manifest)| {
            let config = json(blob(&json(blob(manifest))["config"]));
            assert_eq!(config["architecture"], *architecture);
            &manifest["platform"]["architecture"]
        })
        .collect();
    assert_eq!(platforms, ["amd64", "arm64"]);
}
