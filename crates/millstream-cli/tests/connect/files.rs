//! What needs no broker: databases and files.

use crate::support::Checked;

const FILE: &str = r#"
[pipelines.orders]
source = { type = "sqlite", path = "orders.db", queue = "orders" }
processor = { handler = "forward" }
batchers.out = { sink = { type = "file", path = "out" } }

[pipelines.lines]
source = { type = "file", path = "in", follow = true }
processor = { handler = "forward" }
batchers.out = { sink = { type = "stdout" } }
dead_letter = { type = "memory", queue = "dead" }
"#;

#[test]
fn nothing_is_made_and_what_could_not_be_is_told() {
    let file = Checked::new(FILE, []);
    assert_eq!(file.with(&[]), "ok: 2 pipelines\n");
    for made in ["orders.db", "out", "in", "in.position"] {
        assert!(!file.exists(made), "{made}");
    }
    file.publish(FILE, "orders");
    assert_eq!(file.with(&[]), "ok: 2 pipelines\n");
    let wrong = [
        ("orders.db", "m.toml"),
        ("\"out\"", "\"no/out\""),
        (", follow = true", ""),
    ];
    assert_eq!(
        file.with(&wrong),
        "m.toml:3:36: m.toml: is not an SQLite database (file is not a database); name another path, or move the file \
         away\n  help: put that right: `run` would refuse to start\n\
         m.toml:5:49: cannot write no/out: No such file or directory (os error 2)\n  \
         help: name a file that can be written, in a folder that is there\n\
         m.toml:8:34: cannot read in: No such file or directory (os error 2)\n  \
         help: put that right: `run` would refuse to start\nstatus Some(2)\n"
    );
    assert_eq!(
        file.with(&[("orders.db", "no/orders.db"), ("\"in\"", "\"no/in\"")]),
        "m.toml:3:36: no/orders.db: is in a directory that does not exist; create it first\n  \
         help: put that right: `run` would refuse to start\n\
         m.toml:8:34: cannot read no/in: No such file or directory (os error 2)\n  \
         help: see that it runs and can be reached from here, or name another\nstatus Some(2)\n"
    );
}
