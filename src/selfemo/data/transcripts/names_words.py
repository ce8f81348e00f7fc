# ruff: noqa: RUF001  (words of many languages)
"""Words that tell a speaker's name from speech before a colon, and from a sound in brackets.

The lists are the commonest words of the languages that most transcripts are in. A language that is missing
costs little: there the file alone decides (names.py), by how often the words stand before a colon.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FUNCTION = _words(
    """
    i i'm i've i'll i'd is isn't it's are aren't was were am be been being have has had haven't do does
    did don't didn't my your his her our their me you he she we us they them it this that that's these
    those there here there's to not no if when what what's why how who where which because but or so as
    just then than let let's would could should shall must can't won't cannot you're you've we're
    they're he's she's who's only about into says said asked asks told think know want need get got goes
    going ich du er sie es wir ihr mich mir dich dir uns euch mein meine dein deine sein seine unser ist
    sind war waren bin bist hat habe haben hatte nicht kein keine und oder aber wenn dass das dies
    dieser diese wer wie wo warum weil zu zum zur auf für mit nur noch schon sagt sagte gibt wird werden
    kann muss je j'ai tu il nous vous ils elles on c'est ce cet cette ces est sont était suis a avons
    avez ont mon mes ton ta tes sa ses notre votre leur ne pas que qui quoi quand comment pourquoi où ou
    mais donc si pour avec dans sur dit fait voici voilà yo tú él nosotros ustedes ellos mi mis tus su
    sus soy eres somos está están estoy fue era hay ha tengo tiene qué quién cuando cómo dónde por para
    con ni pero porque como lo le se te dijo io noi voi loro sono sei siamo siete è ho hai abbiamo hanno
    mio tuo tua suo sua che chi cosa quando come dove perché non ma per questo questa quello detto eu
    você ele ela nós eles meu minha teu seu sou és são foi tenho tem quem onde com não mas isto isso ik
    jij hij zij wij jullie mijn jouw zijn haar ons bent heb heeft hebben niet geen en of maar als dat
    wat hoe waar waarom omdat voor met naar zegt я ты он она оно мы вы они меня мне тебя тебе его её ему
    нас нам вас вам мой моя моё мои твой твоя ваш наш это этот эта эти то тот не ни но что кто как где
    когда почему потому если чтобы для был была было были есть нет у к на с со по сказал сказала говорит
    вот так jag din är var har inte men att som det den vad vem hur ja wy jest są był nie ale że co kto
    jak gdzie mój twój się sen biz siz onlar bu şu nasıl değil yok ve için εγώ εσύ αυτός αυτή εμείς
    εσείς είναι ήταν είμαι έχω έχει δεν να θα που τι ποιος πώς αλλά και για με σε μου σου أنا انا أنت
    انت هو هي نحن هم هذا هذه ذلك قال قالت في من على إلى عن أن إن كان كانت لا ما لم لن هل كيف أين متى لكن
    אני אתה את הוא היא אנחנו אתם הם זה זאת זו של על אל עם לא יש אין מה מי איך איפה למה כי אבל אם אמר
    אמרה मैं मैंने हम तुम आप वह वे यह ये है हैं हूँ था थी थे हो का की के को ने से में पर नहीं क्या कौन
    कैसे कहाँ कब लेकिन और 나는 나 저는 난 너는 넌 우리는 그는 그녀는 이것은 그것은 이건 그건 내가 네가
    제가 말했다 왜 무엇 뭐 어떻게 하지만
    """
)
"""Words that make of several words a sentence, in small letters: no name of several words has one."""

OPENING = _words(
    """
    in on at by for from with of after before during until since and also oh well yes no okay ok please
    im am bei von vom nach vor seit bis en à de du depuis avant après dans dès el la desde hasta antes в
    на из от до после zur dear lieber liebe querido querida chère дорогой дорогая
    """
)
"""Words that begin a sentence rather than a name, if a blank and another word or number follow."""

PARTICLES_OF_NAMES = _words("de du el")
"""Those that begin a name too, if all that follows has capital letters ("De Gaulle")."""

OWN = _words(
    """
    mein meine meinen dein deine unser unsere euer eure kein keine ein eine einen gute guter gutes
    schlechte kleine kleiner kleines große großer großes letzte letzter letztes erste erster erstes
    nächste wichtiger wichtige
    """
)
"""Words that make German nouns, with their capital letters, none of a name ("Meine Meinung")."""

PARTICLES = _words(
    """
    of the de la le les du des da das do dos della di del der den dem die von vom van zu zum zur ten ter
    el al bin ibn ben bint abu y e et and und och og en i и й та on in at with over from mc mac st au
    aux av af ul
    """
)
"""Small words inside names and roles: "Woman on phone", "Ludwig van Beethoven"."""

TITLES = _words(
    """
    dr mr mrs ms mx prof st sr jr lt col sgt capt gen rev fr hon det insp cpl pvt maj cmdr adm gov sen
    rep pres mme mlle m mm me dott sig hr frl dhr mevr sra srta ud d dña г г-н г-жа д-р no nr vol ste mt
    messrs
    """
)
"""Abbreviations whose point ends no sentence."""

ORDINARY = _words(
    """
    remember listen look see wait think imagine note notice question answer answers warning caution
    danger attention rule rules fact facts truth problem problems solution result results reason reasons
    example idea plan point message news update headline quote moral lesson tip hint secret step steps
    chapter part episode act scene section page item number option choice case exhibit day week month
    year hour minute time date place location address phone email subject title author source price
    total age name names first second third fourth last next finally important urgent breaking alert
    meaning translation conclusion summary bottom promise deal bet guess true false yes no okay ok hello
    hi hey goodbye bye thanks please sorry sure right well so now then here there but and or because if
    when where why how what who which today tomorrow yesterday tonight monday tuesday wednesday thursday
    friday saturday sunday january february march july september october november december morning
    evening night good bad best worst also still again once always never maybe perhaps actually
    basically honestly seriously obviously clearly simply instead otherwise however therefore thus
    meanwhile anyway besides plus minus beware stop go come run call write read say tell ask try do
    don't let know consider suppose believe trust take give get keep hold check objective mission goal
    level phase stage room flight route verse figure table version gate line channel station score
    weather temperature status error rating verdict diagnosis symptoms cause effect motto slogan wanted
    found lost free sold open closed theory hypothesis thesis proof evidence motive weapon suspect
    victim cut fade int ext interior exterior theme topic agenda spoiler disclaimer ps p.s pps p.p.s nb
    n.b fyi btw omg eta rsvp asap aka tl;dr tldr reminder correction clarification edit context
    background announcement confession alternatively specifically namely re fwd fw cc bcc frankly
    breakfast lunch dinner speaking everything nothing something anything only just my your his her our
    their frage antwort achtung warnung regel regeln fakt tatsache wahrheit lösung ergebnis grund
    beispiel idee hinweis merke wichtig schritt kapitel teil tag uhr punkt erstens zweitens drittens
    denk denkt hör hört schau schaut warte ja nein gut und aber oder heute morgen gestern übrigens kurz
    kurzum fazit ziel stopp nun folgendes klartext tja nochmal rat meinung nachricht nachrichten tipp
    vorschlag bitte wichtigste erinnerung ehrlich règle réponse rappel rappelle-toi souviens-toi écoute
    écoutez regarde regardez attends fait vérité problème résultat raison exemple idée conseil étape
    chapitre partie jour bref donc mais oui non bon alors aujourd'hui demain hier premièrement
    deuxièmement moralité remarque sache franchement honnêtement d'accord regla resumiendo ojo fíjate
    imagina oye pregunta respuesta atención recuerda recuerden escucha escuchen mira miren espera verdad
    hecho problema solución resultado razón ejemplo consejo paso capítulo parte día nota aviso sí bueno
    pero entonces hoy mañana ayer primero segundo conclusión moraleja regola domanda risposta attenzione
    ricorda ricordate ascolta ascoltate guarda guardate aspetta verità fatto soluzione risultato ragione
    esempio consiglio passo capitolo giorno insomma cioè ecco sì allora oggi domani regra pergunta
    resposta atenção lembre lembra escuta escute olha olhe verdade fato solução razão exemplo resumindo
    kortom vraag antwoord luister kijk wacht onthoud waarheid feit probleem oplossing reden voorbeeld
    stap правило вопрос ответ внимание помни помните слушай слушайте смотри смотрите подожди запомни
    запомните правда факт проблема решение результат причина пример идея совет шаг глава часть день итак
    да нет но сегодня завтра кстати вывод короче итог новость первое второе например главное fråga svar
    minns lyssna titta vänta sanning pytanie odpowiedź uwaga pamiętaj słuchaj patrz czekaj prawda soru
    cevap dikkat unutma dinle bak bekle gerçek ερώτηση απάντηση προσοχή θυμήσου άκου κοίτα αλήθεια سؤال
    جواب تذكر تذكري اسمع انظر انتبه الحقيقة ملاحظة مثال لكن نعم شرط قاعدة שאלה תשובה זכור זכרי תזכרי
    תזכור תקשיב תקשיבי תראה תראי שימו האמת הערה דוגמה כלל सवाल जवाब याद सुनो देखो ध्यान सच नियम बात
    उदाहरण 질문 대답 답 기억해 들어봐 봐 잠깐 주의 사실 규칙 예 결론 문제 记住 記住 记得 記得 听着 聽著
    看 看着 注意 问题 問題 答案 回答 规则 規則 事实 事實 真相 原因 例如 比如 结论 結論 总之 提示 覚えて
    覚えておいて 聞いて 見て 質問 答え ルール 事実 真実 理由 例えば つまり จำไว้ ฟัง ฟังนะ ดู คำถาม
    คำตอบ กฎ ความจริง ระวัง ปัญหา ตัวอย่าง
    """
)
"""Words that stand before a colon in speech ("Remember: no phones"); names only in a whole file of them."""

SELVES = _words("i me you us ich mir du io yo tu tú moi toi je eu я ты")
"""Those who speak of themselves in their own transcripts ("Me: hi")."""

UNSPACED = _words(
    """
    说 說 道 是 我 你 您 他 她 它 们 們 了 在 不 没有 沒有 这 這 那 吗 嗎 呢 请 請 就 は が を です ます
    って ない した する これ それ ฉัน คุณ เขา คือ ว่า ไม่ เป็น ที่
    """
)
"""Pieces of a sentence in scripts without blanks between words."""

ROLES = _words(
    """
    man woman boy girl child kid baby guy lady male female men women boys girls children kids both all
    everyone together crowd group chorus narrator announcer host hostess anchor reporter interviewer
    interviewee moderator operator speaker voice caller guard officer cop policeman soldier captain
    sergeant doctor nurse patient waiter waitress driver pilot teacher student judge lawyer clerk agent
    customer mother father mom dad mum brother sister grandma grandpa king queen prince princess priest
    player singer director presenter translator interpreter computer robot radio tv dispatcher bartender
    barman cashier guest audience participant respondent participants mann frau junge mädchen kind alle
    beide sprecher sprecherin erzähler homme femme garçon fille tous narrateur hombre mujer niño niña
    todos narrador locutor uomo donna ragazzo ragazza tutti narratore мужчина женщина мальчик девочка
    все оба диктор рассказчик голос спикер ведущий 男 女 男人 女人 男声 女声 旁白 主持人 记者 記者 众人
    眾人 全員 一同 司会 ナレーター アナウンサー 男性 女性 남자 여자 모두 기자 해설 아나운서 الجميع رجل
    امرأة المذيع
    """
)
"""Roles that stand for a name, in small letters too."""

SOUNDS = _words(
    """
    laugh laughter sigh gasp sob cry cough groan moan grunt chuckle giggle sniffle sniff scream shout
    yell whisper mutter mumble murmur clear sing hum snore clap cheer whistle pant breath breathe
    breathing exhale inhale gulp burp yawn sneeze knock beep ring ringtone buzz bark meow growl roar
    howl chirp creak slam bang crash click clang thud clatter rustle rumble rattle splash sizzle hiss
    squeak squeal screech shriek wail weep whimper snort scoff tut tsk stammer stutter hesitate pause
    silence silent quiet noise static feedback music song theme applause ovation thunder rain wind wave
    explosion gunshot gunfire shot siren alarm bell horn engine door phone telephone cell tv footstep
    footsteps inaudible unintelligible indistinct crosstalk chatter talk foreign language speaking
    spanish english french german italian russian chinese japanese korean arabic hindi dutch latin echo
    distant distorted muffled faint faintly loud loudly softly quietly slowly angrily sadly happily
    nervously sarcastically sarcastic angry sad happy excited nervous drunk tearful hoarse mocking
    imitating continues continued cont'd stops resumes fades off over offscreen offstage onscreen v.o
    o.s o.c vo os voiceover subtitle caption censored bleep bleeped redacted blank end beat grinning
    smiling nodding shrug spit swallow kiss smack slurp crunch munch chomp pop snap crack crackle drip
    gurgle whir whoosh thump pound tap stomp clink jingle chime toll tick drum guitar piano orchestra
    band instrumental dramatic suspenseful upbeat gentle soft tense ominous melancholy cheerful bird dog
    cat crowd audience baby everyone people machine car train plane lacht lachen seufzt seufzer musik
    applaus gelächter schreit flüstert weint hustet rire rires soupir soupire musique applaudissements
    crie chuchote pleure risa risas suspira suspiro música aplausos grita susurra llora ríe risata
    risate sospira musica applausi grida sussurra piange risos palmas chora gelach zucht muziek смех
    смеется смеётся вздыхает вздох музыка аплодисменты кричит шепчет плачет 笑 笑声 笑聲 大笑 叹气 嘆氣
    音乐 音樂 掌声 掌聲 哭 哭声 枪声 敲门声 웃음 한숨 음악 박수 노크 ضحك موسيقى تصفيق אנחה צחוק מוזיקה
    מחיאות
    """
)
"""Sounds, manners and languages in brackets, in their shortest form (names.py takes endings off)."""

MANNERS = _words("in on to at with through over from under into")
"""Words that begin a manner in brackets ("in Spanish", "to himself")."""

SOUND_SIGNS = _words("音 声 聲 笑 泣 叫 歌 曲 拍手 チャイム ため息 소리")
"""Signs that a bracket in a script without capitals is a sound."""
