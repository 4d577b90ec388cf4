//! Payloads to typed columns, by the declared schema.
