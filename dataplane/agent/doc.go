// Package agent obeys the reconciler's orders on one node: it creates, grows, exports and deletes
// volumes on the node's engines. It decides nothing.
//
//	A1 Obeying twice is obeying once: an order whose id was obeyed gets the same answer again.
//	A2 An order with a token older than one obeyed before is refused, also after a restart: the
//	   token is durable before the order is obeyed.
//	A3 What hosts reach is exactly the exports ordered since the agent started. After a restart
//	   nothing is exported until the reconciler says so.
//
// step.go is the pure part, agent.go the shell.
package agent
