package tier

// The fills of the flash of a pair, in parts of FillWhole of what it can hold and still be cleaned.
const (
	FlashCool = 600 // below, nothing goes to the disk
	FlashFull = 800 // as much goes to the disk as comes in; from here on writers begin to wait

	// coolFactor says how much faster than it comes in the flash is emptied when it is full.
	coolFactor = 4
)

// Cool gives how many bytes are to go to the disk of a pair for so many that came to its flash at a
// fill: in proportion to the fill, so that the fill settles where as much goes as comes. It counts
// what came and not time, so a pair that nobody writes to is idle.
func Cool(fill int, came int64) int64 {
	switch {
	case fill <= FlashCool || came <= 0:
		return 0
	case fill <= FlashFull:
		return came * int64(fill-FlashCool) / (FlashFull - FlashCool)
	}
	return came + (coolFactor-1)*came*int64(min(fill, FillWhole)-FlashFull)/(FillWhole-FlashFull)
}

// Slow gives the fill of a journal at which its writers are slowed down as those of a pair's flash
// are to be at this one: State.Admit holds for both.
func Slow(fill int) int {
	return FillSlow + (fill-FlashFull)*(FillWhole-FillSlow)/(FillWhole-FlashFull)
}
