//! Relays inside this very process. They stop by a signal to it, so other tests have no place here.

mod drain;
