package qos

import "weft/domain"

// fifo is requests that wait, in order. It takes memory for those that wait at once, also where
// there is always one.
type fifo struct {
	list []*domain.IO // from head on
	head int
}

func (q *fifo) len() int { return len(q.list) - q.head }

func (q *fifo) push(io *domain.IO) {
	if len(q.list) == cap(q.list) && q.head > len(q.list)/2 {
		n := copy(q.list, q.list[q.head:])
		clear(q.list[n:])
		q.list, q.head = q.list[:n], 0
	}
	q.list = append(q.list, io)
}

func (q *fifo) pop() *domain.IO {
	io := q.list[q.head]
	q.list[q.head] = nil
	if q.head++; q.head == len(q.list) {
		q.list, q.head = q.list[:0], 0
	}
	return io
}
