//! The Debian package and its unit: made twice with the same bytes, judged by systemd's own tools, unpacked, and run as the
//! unit says. systemd itself starts nothing here, since it would have to be the first process of the machine.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use etcd_proxy_e2e::{Etcd, Etcdctl, Process, Version, ports, programs};

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
