//! The Erlang applications that a broker needs, found by what each says that it needs: [`link`].

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::series::Installation;

/// Fills the folder with links to these applications of the installation and to all that they need.
pub(crate) fn link(installation: &Installation, folder: &Path, wanted: &[&str]) -> io::Result<()> {
    let inside = installation.home.join("plugins");
    let outside = installation.outside(&inside);
    let mut there = BTreeMap::new();
    for entry in fs::read_dir(&outside)? {
        // As rabbit-3.10.8; what has no version is a file for the reader.
        if let Ok(name) = entry?.file_name().into_string()
            && let Some((app, _)) = name.rsplit_once('-')
        {
            there.insert(app.to_owned(), name);
        }
    }
    let mut open: Vec<String> = wanted.iter().map(|&app| app.to_owned()).collect();
    while let Some(app) = open.pop() {
        // Taken out, so that it is linked once. What is not there comes with Erlang.
        let Some(name) = there.remove(&app) else {
            continue;
        };
        symlink(inside.join(&name), folder.join(&name))?;
        let text = fs::read_to_string(outside.join(&name).join("ebin").join(format!("{app}.app")))?;
        open.extend(needs(&text));
    }
    Ok(())
}

/// What the text of an `.app` file lists under `applications`.
fn needs(text: &str) -> Vec<String> {
    text.split_once("{applications,")
        .and_then(|(_, rest)| rest.split_once('[')?.1.split_once(']'))
        .map(|(list, _)| list.split(',').map(|app| app.trim().to_owned()).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::needs;

    #[test]
    fn an_application_names_what_it_needs() {
        let text = "{application,rabbit,[\n  {modules,[a,b]},\n  {applications,[kernel,\n   stdlib, ra]}]}.";
        assert_eq!(needs(text), ["kernel", "stdlib", "ra"]);
        assert_eq!(needs("{application,rabbit,[]}."), Vec::<String>::new());
    }
}
