"""Kafka and Valkey without installing either: for the demo and the tests, never for an observatory."""
