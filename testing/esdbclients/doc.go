// Package esdbclients runs the official Node.js clients of EventStoreDB and KurrentDB, unmodified,
// against a served log. They are fetched by npm into a folder of the test; the official Go client
// is proved in adapters/esdb itself.
package esdbclients
