//! Placeholder: see PLAN.
