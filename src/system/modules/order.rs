//! The order in which modules are loaded.

use std::collections::{BTreeMap, VecDeque};

use super::{Module, Tree};

/// Why no order was found.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModuleError {
    #[error("the new system's kernel has no driver called {name}; build the system with one that has it")]
    Unknown { name: String },
    #[error("the new system's module {module} needs {missing}, which is not there; build the system anew")]
    Incomplete { module: String, missing: String },
}

/// How far a module has come.
#[derive(Clone, Copy, PartialEq)]
enum State {
    Begun,
    Placed,
}

struct Order<'a> {
    tree: &'a Tree,
    states: BTreeMap<&'a str, State>,
    // What others would like to have before them, but what needs one of these itself.
    later: VecDeque<&'a str>,
    paths: Vec<String>,
}

impl Tree {
    /// Returns the files of the modules that must be loaded for all of these names, relative to the
    /// tree: each once, after everything it needs, and always in the same order.
    ///
    /// A name may be an alias. Builtin drivers are passed over, and so are useful ones that the tree
    /// does not have; a required one that it does not have is an error.
    pub fn load_order<S: AsRef<str>>(
        &self,
        required: &[S],
        useful: &[S],
    ) -> Result<Vec<String>, ModuleError> {
        let mut order =
            Order { tree: self, states: BTreeMap::new(), later: VecDeque::new(), paths: Vec::new() };
        for name in required.iter().map(AsRef::as_ref) {
            if self.find(name).is_empty() {
                return Err(ModuleError::Unknown { name: name.to_owned() });
            }
            order.add(name)?;
        }
        useful.iter().try_for_each(|name| order.add(name.as_ref()))?;
        Ok(order.paths)
    }
}

impl<'a> Order<'a> {
    fn add(&mut self, name: &str) -> Result<(), ModuleError> {
        for name in self.tree.find(name).modules {
            self.soft(&name)?;
        }
        while let Some(name) = self.later.pop_front() {
            self.place(name)?;
        }
        Ok(())
    }

    /// Places what is wanted, now or, where it needs something that has only begun, after that.
    fn soft(&mut self, name: &str) -> Result<(), ModuleError> {
        let Some((name, module)) = self.tree.modules.get_key_value(name) else { return Ok(()) };
        let begun = |need: &String| self.states.get(need.as_str()) == Some(&State::Begun);
        if module.needs.iter().any(begun) {
            self.later.push_back(name);
            return Ok(());
        }
        self.place(name)
    }

    fn place(&mut self, name: &'a str) -> Result<(), ModuleError> {
        if self.states.contains_key(name) {
            return Ok(());
        }
        self.states.insert(name, State::Begun);
        let tree = self.tree;
        let Module { path, needs } = &tree.modules[name];
        for need in needs {
            match tree.modules.contains_key(need) {
                true => self.place(need)?,
                false if tree.builtin.contains(need) => {}
                false => {
                    let (module, missing) = (name.to_owned(), need.clone());
                    return Err(ModuleError::Incomplete { module, missing });
                }
            }
        }
        let softdeps = tree.softdeps.get(name);
        self.all_of(softdeps.map_or(&[], |softdeps| &softdeps.before))?;
        self.states.insert(name, State::Placed);
        self.paths.push(path.clone());
        self.all_of(softdeps.map_or(&[], |softdeps| &softdeps.after))
    }

    fn all_of(&mut self, names: &[String]) -> Result<(), ModuleError> {
        let names = names.iter().flat_map(|name| self.tree.find(name).modules).collect::<Vec<_>>();
        names.iter().try_for_each(|name| self.soft(name))
    }
}
