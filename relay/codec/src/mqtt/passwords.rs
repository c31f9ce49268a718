//! A file of users and hashes of their passwords.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::path::Path;

use argon2::password_hash::{PasswordHashString, PasswordVerifier};
use argon2::{Argon2, Params};

/// Users and hashes of their passwords: one `USER:HASH` a line, `#` before a comment. A hash is a PHC
/// string of Argon2 (RFC 9106), which says itself what it costs to compute.
#[derive(Clone, Debug, Default)]
pub struct Passwords {
    users: HashMap<Box<str>, PasswordHashString>,
    /// The hashes in the order of the file, for who is not known.
    hashes: Vec<PasswordHashString>,
    secret: RandomState,
}

/// The same users with the same hashes.
impl PartialEq for Passwords {
    fn eq(&self, other: &Self) -> bool {
        self.users == other.users
    }
}

impl Passwords {
    /// How many users there are.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// Reads a file, or says what is wrong with it, and where.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        Self::parse(&text)
            .map_err(|(line, problem)| format!("{}:{line}: {problem}", path.display()))
    }

    fn parse(text: &str) -> Result<Self, (usize, String)> {
        let (mut users, mut hashes) = (HashMap::new(), Vec::new());
        for (number, line) in (1..).zip(text.lines()) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let problem = |problem: String| (number, problem);
            let (user, hash) = line
                .split_once(':')
                .ok_or_else(|| problem("must have a user, a colon and a hash".to_owned()))?;
            let hash = PasswordHashString::new(hash).map_err(|error| {
                problem(format!("not a PHC string ({error}); `argon2 SALT -id -e` makes one"))
            })?;
            if !hash.algorithm().as_str().starts_with("argon2") {
                return Err(problem(format!("{} is not supported; use Argon2", hash.algorithm())));
            }
            let parsed = hash.password_hash();
            if parsed.salt.is_none() || parsed.hash.is_none() {
                return Err(problem(
                    "the hash is cut off: it needs a salt and the hash itself".to_owned(),
                ));
            }
            if let Err(error) = Params::try_from(&parsed) {
                return Err(problem(format!("this hash cannot be computed ({error})")));
            }
            hashes.push(hash.clone());
            if users.insert(user.into(), hash).is_some() {
                return Err(problem(format!("user `{user}` occurs twice")));
            }
        }
        Ok(Self { users, hashes, secret: RandomState::new() })
    }

    /// Whether this is the user's password. One hash is computed, right or wrong: for a user who is not
    /// known it is some other user's, for one name always the same, so that the time does not tell who
    /// is known. Who gives no name or no password has nothing to be told by it, and costs nothing.
    pub fn check(&self, user: Option<&str>, password: Option<&[u8]>) -> bool {
        let (Some(user), Some(password)) = (user, password) else { return false };
        let known = self.users.get(user);
        let Some(hash) = known.or_else(|| self.stand_in(user)) else { return false };
        let right = Argon2::default().verify_password(password, &hash.password_hash()).is_ok();
        known.is_some() && right
    }

    fn stand_in(&self, user: &str) -> Option<&PasswordHashString> {
        let count = u64::try_from(self.hashes.len()).ok().filter(|count| *count > 0)?;
        let place = self.secret.hash_one(user) % count;
        self.hashes.get(usize::try_from(place).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf %s secret | argon2 saltsalt -id -t 1 -k 8 -e`
    const HASH: &str =
        "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$vk+JgWgZGbXHtEqPQPhzXbD+QxxkJR5Fq2AXLhDyYaY";

    #[test]
    fn a_password_is_right_or_not() {
        let users = Passwords::parse(&format!("# people\n\nanna:{HASH}\n")).unwrap();
        assert!(users.check(Some("anna"), Some(b"secret")));
        assert!(!users.check(Some("anna"), Some(b"Secret")));
        assert!(!users.check(Some("anna"), None));
        assert!(!users.check(Some("bert"), Some(b"secret")));
        assert!(!users.check(None, Some(b"secret")));
        assert!(!Passwords::default().check(Some("anna"), Some(b"secret")));
    }

    #[test]
    fn who_is_not_known_costs_what_one_of_the_known_costs() {
        let dear = HASH.replace("m=8", "m=16");
        let users = Passwords::parse(&format!("anna:{HASH}\nbert:{dear}\n")).unwrap();
        let stand_in = |user: &str| users.stand_in(user).unwrap().to_string();
        let names: Vec<_> = (0..64).map(|number| format!("nobody-{number}")).collect();
        for name in &names {
            assert_eq!(stand_in(name), stand_in(name), "the second try takes as long");
        }
        // Not all of them the cheap one, nor the dear one.
        for hash in [HASH, &dear] {
            assert!(names.iter().any(|name| stand_in(name) == hash));
        }
    }

    #[test]
    fn a_mistake_is_told_with_its_line() {
        for (line, wanted) in [
            ("anna:$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ".to_owned(), "cut off"),
            (format!("anna:{}", HASH.replace("t=1", "t=0")), "computed"),
            ("anna".to_owned(), "colon"),
            ("anna:secret".to_owned(), "PHC"),
            ("anna:$pbkdf2-sha512$i=1$c2FsdHNhbHQ$BsJQqJNmUSNcIILuDp3JQA".to_owned(), "Argon2"),
            (format!("x:{HASH}"), "twice"),
        ] {
            let (number, problem) = Passwords::parse(&format!("x:{HASH}\n{line}\n")).unwrap_err();
            assert!(number == 2 && problem.contains(wanted), "{number}: {problem}");
        }
    }
}
