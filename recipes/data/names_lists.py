"""People and places of four novels of Jane Austen, written by hand for make_names.py; public-domain facts."""

from __future__ import annotations


def word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


def place_list(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


# A title and the capitalised words after it are one person: Mr. Darcy, Lady Catherine de Bourgh, Captain Wentworth.
TITLES = word_set(
    "Mr Mr. Mrs Mrs. Miss Misses Lady Sir Lord Captain Captains Capt. Colonel Col. Admiral General Major Lieutenant "
    "Lieut. Dr Dr. Doctor Madame Master Viscountess Nurse Governor Messrs. Rev. Hon."
)

# Given names and surnames that stand alone. Words of everyday use (Long, Hill, King, Young, Grey, Brown, Smith)
# are left to the titles, so that "Mrs. Hill" is a person and "the hill" is not.
GIVEN_NAMES = word_set(
    # Pride and Prejudice
    "Elizabeth Lizzy Eliza Jane Lydia Kitty Catherine Mary Charlotte Maria Caroline Louisa Georgiana Fitzwilliam "
    "William Charles George Anne Lewis Sally Harriet Sarah John Richard Thomas "
    # Emma
    "Emma Frank Isabella Henry Robert James Patty Hannah Augusta Selina Bella Hetty Harry Tom Martha Hodges Elizabeth "
    "Anna Adelaide Theodore Jem "
    # Sense and Sensibility
    "Elinor Marianne Margaret Edward Lucy Nancy Fanny Sophia Annamaria Betty Biddy Cartwright Walter "
    # Persuasion
    "Frederick Henrietta Sophy Dick Penelope Jemima Archibald Alicia Basil Edmund"
)
SURNAMES = word_set(
    # Pride and Prejudice
    "Bennet Bingley Darcy Wickham Lucas Collins Gardiner Phillips Philips Forster Hurst Denny Carter Pratt Goulding "
    "Chamberlayne Haggerston Jenkinson Jones Metcalf Morris Nicholls Pope Pratt Reynolds Robinson Watson Webb "
    "Younge Annesley Dawson Grantley Harrington Fordyce Bourgh Chamberlayne Goulding Hatfield "
    # Emma
    "Woodhouse Knightley Churchill Fairfax Elton Weston Bates Goddard Martin Taylor Campbell Dixon Perry Hawkins Nash "
    "Larkins Coles Cole Coxe Cox Suckling Bragge Wingfield Otway Hughes Richardson Stokes Wallis Bickerton "
    "Gilbert Partridge Milman Cooper Jeffereys Tupman Abdy Saunders Serle Graham Ostalis Abbots Clayton Mitchell "
    "Braithwaite "
    # Sense and Sensibility
    "Dashwood Ferrars Steele Middleton Jennings Willoughby Brandon Palmer Williams Morton Carey Careys Whitaker Pratt "
    "Ellison Donavan Harris Parry Parrys Sanderson Sandersons Sparks Henshawe Burgess Courtland Elliott Davies "
    "Richardson Simpson Dennison Godby Sharpe Gibson Richards Bonomi "
    # Persuasion
    "Elliot Russell Wentworth Musgrove Croft Harville Benwick Hayter Dalrymple Carteret Shepherd Rooke Shirley Brigden "
    "Molland Maclean Morley Trent Stevenson Spicer Poole Durand Ibbotson Mackenzie Grierson Basil Robinson "
    "Hamilton Wallis Frankland Atkinson Tattersall Strafford Crawford Scott Byron Larolles Cowper Shakespeare "
    "Garrick Genlis Johnson"
)
SURNAMES_AFTER_A_NAME = word_set("Smith King Grey Gray Hill Long Brown Wright Ford Young Price Clay")  # Harriet Smith
FAMILIES = word_set("Smiths Marys Elizabeths Sophys")  # plurals that no rule makes

# Towns, counties, countries, houses, streets; several words first are matched first.
PLACES = place_list(
    # Pride and Prejudice
    "Longbourn House, Longbourn, Netherfield Park, Netherfield House, Netherfield, Meryton, Pemberley "
    "House, Pemberley Woods, Pemberley, Rosings Park, Rosings, Hunsford Parsonage, Hunsford, Lucas Lodge,"
    " Lambton, Haye Park, Stoke, Purvis Lodge, Pulvis Lodge, Ashworth, Oakham Mount, Derbyshire, "
    "Hertfordshire, Kent, London, Brighton, Gracechurch Street, Gracechurch-street, Grosvenor Street, "
    "Edward-street, Edward Street, Cheapside, Clapham, Epsom, Barnet, Hatfield, Newcastle, Ramsgate, "
    "Eastbourne, Scarborough, Liverpool, Bakewell, Matlock, Dovedale, Dove Dale, Peak, Lakes, Chatsworth,"
    " Kenilworth, Warwick, Blenheim, Birmingham, Oxford, Cambridge, Westerham, Bromley, Kympton, Gretna "
    "Green, Scotland, England, Great Britain, Britain, St. James's, St. James, St. Clement's, "
    # Emma
    "Highbury, Hartfield, Randalls, Donwell Abbey, Donwell Lane, Donwell, Abbey-Mill Farm, Abbey-Mill, "
    "Abbey Mill Farm, Abbey Mill, Enscombe, Maple Grove, Brunswick Square, Manchester Street, "
    "Manchester-street, Vicarage Lane, Vicarage-lane, Broadway Lane, Broadway-lane, Box Hill, Richmond, "
    "Windsor, Kingston, Cobham, Mickleham, Dorking, Langham, Surry, Surrey, Yorkshire, Wiltshire, "
    "Southend, South End, Cromer, Weymouth, Bristol, Clifton, King's-Weston, Kings Weston, Ireland, "
    "Dublin, Holyhead, Baly-craig, Swisserland, Venice, Clayton Park, Combe, "
    # Sense and Sensibility
    "Norland Park, Norland House, Norland, Stanhill, Sussex, Barton Park, Barton Cottage, Barton Valley, "
    "Barton Parsonage, Barton, Allenham Court, Allenham House, Allenham, High-church Down, Delaford "
    "Hanger, Delaford House, Delaford, Whitwell, Combe Magna, Cleveland, Devonshire, Somersetshire, "
    "Dorsetshire, Exeter, Plymouth, Longstaple, Honiton, Dawlish, Berkeley Street, Berkeley-street, "
    "Conduit Street, Conduit-street, Harley Street, Harley-street, Bond Street, Bond-street, Sackville "
    "Street, Sackville-street, Park Street, Wigmore Street, Portman Square, Portman-square, Hanover "
    "Square, Hanover-square, Upper Berkeley Street, Upper Seymour Street, Bartlett's Buildings, Pall "
    "Mall, Holburn, Holborn, Drury Lane, Kensington Gardens, Temple, Westminster, Dartford, Twickenham, "
    "Norfolk, Reading, Marlborough, Avignon, Lombardy, East Kingham Farm, Abbeyland, Abbey-land, Newton, "
    "East Indies, West Indies, "
    # Persuasion
    "Kellynch Hall, Kellynch-hall, Kellynch Lodge, Kellynch, Uppercross Hall, Uppercross Cottage, "
    "Uppercross House, Uppercross, Winthrop, Lyme Regis, Lyme, Cobb, Charmouth, Pinny, Monkford, "
    "Crewkherne, Taunton, Thornberry Park, Bath, Camden Place, Camden-place, Laura Place, Gay Street, "
    "Milsom Street, Pulteney Street, Rivers Street, Union Street, Bath Street, Church Street, Market "
    "Place, Lansdown Crescent, Lansdown Road, Lansdown, Marlborough Buildings, Westgate Buildings, "
    "Westgate-buildings, Belmont, Tunbridge Wells, Minehead, Shropshire, Cheshire, Gloucester, "
    "Gloucestershire, South Park, Portsmouth, Deal, Sidmouth, Yarmouth, Spithead, Isle of Wight, Cape of "
    "Good Hope, Gibraltar, Cape, Thames, Lisbon, Cork, Bermuda, Bahama, St Domingo, St. Domingo, "
    "Mediterranean, Western Islands, North Seas, Straits, Streights, Atlantic, Plymouth Sound, Great Nook"
)
