"""Commands around a project's questions: init, new, list, show. Light to import; what is heavy comes with the run."""
